"""S4, Navier-Stokes: the vorticity of the start from 20 sensors at the end."""

from __future__ import annotations

from functools import partial

from zoo.claim import inverse_pde
from zoo.claim.claim import Advance, Claim, Measured
from zoo.claim.inverse_pde import Setting
from zoo.physics.navier_stokes import NavierStokes

# Inverse relative errors in per cent from 1 and from 100 samples, as the authors' page on TAEN
# gives them.
_PUBLISHED = {
    "naive": ("103.94", "40.20"),
    "model_constrained": ("46.43", "27.29"),
    "tnet": ("25.68", "24.54"),
    "tikhonov": ("22.71", ""),
}


def measure(small: bool, advance: Advance) -> Measured:
    """nDNN, mcDNN and TNet at 1 and 100 samples."""
    setting = Setting(
        NavierStokes(),
        kinds=("naive", "model_constrained", "tnet"),
        sizes=(1, 100),
        n_seeds=2 if small else 4,
        n_steps=1,
        n_test=15 if small else 30,
        samples_a_step=400 if small else 1000,
        n_iterations=4,
        iterations_a_step=40,
        # Half the time; forty steps do not get as far as its rounding.
        precision="32-true",
    )
    return inverse_pde.measure(setting, advance)


CLAIM = Claim(
    name="navier_stokes",
    title="Navier-Stokes: TNet from 1 and from 100 samples",
    source="Nguyen and Bui-Thanh, TNet, SIAM J. Sci. Comput., doi 10.1137/22M1526708",
    published="TNet is near Tikhonov's accuracy from 50 training samples (abstract of TNet); the "
    "errors in per cent of the authors' page on TAEN are in the table. Their sensors and prior "
    "were not at hand: compare ratios to Tikhonov, not the errors.",
    experiments=("python -m zoo.train experiment=navier_stokes",),
    measure=measure,
    checks=partial(inverse_pde.checks, tnet="tnet", naive="naive", limit=1.1),
    table=partial(inverse_pde.table, published=_PUBLISHED),
    plot=partial(inverse_pde.plot, title="Navier-Stokes, 32 x 32, 20 sensors"),
    remarks="Relative errors of the vorticity at time 0; the noise (0.5 %) is of our own choice, "
    "the prior is that of Li et al. as printed. TNet's published errors are 1.13 and 1.08 times "
    "Tikhonov's, from 1 and 100 samples. The nets are quadratic; 40 iterations of L-BFGS in single "
    "precision on 400 rows, whose copies reach as far as two draws of the prior are apart (nDNN's "
    "differ by 2 % of a sample's root mean square). This was chosen by other training and "
    "validation samples, after affine nets on copies that differ by 2 % had missed the tolerance "
    "with 1.63 times Tikhonov's error from the one sample of seed 0. Data differ by 6 %, so that "
    "such copies do not reach them, and an affine net, trained to its end, learns Tikhonov's "
    "solution linearised at the sample: it has 1.07 to 1.11 times the error for those of eight "
    "other samples whose coefficients have a norm of up to 3.6, and 1.31 to 1.62 for the four "
    "larger ones; 1.25 at seed 0's. Farther copies with the same noise on every sensor made "
    "quadratic nets worse (1.8 and more at 6 %, on a grid of 16 x 16): they ask for coefficients "
    "far from the prior where the data say little. The nets of seed 1 diverged at first, until a "
    "loss that is no number was made infinite for the line search. The scale of the prior decides, "
    "and the authors' is not known to us. With one 4.3 times larger, as the code of Li et al. "
    "draws it, Tikhonov's error is 22.8 %, near the published one, and TNet's, trained as here, "
    "258 % and 89 % from 1 and 100 samples (one seed). That was measured here first; the printed "
    "scale was taken afterwards, and is the easier problem.",
)
