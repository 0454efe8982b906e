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
        n_seeds=1 if small else 2,
        n_steps=1,
        n_test=15 if small else 30,
        samples_a_step=200 if small else 1000,
        randomization=0.02,
        n_iterations=4,
        hidden=(),
        iterations_a_step=10,
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
    "the prior is that of Li et al. as printed. The nets are affine; a dozen evaluations of L-BFGS "
    "on 200 rows, randomised by 2 % of a sample's root mean square, chosen with other training and "
    "validation samples. The best affine map, fitted to Tikhonov's own solutions, has 1.013 times "
    "Tikhonov's error: the class is no hindrance from 100 samples. From one sample it is: Tikhonov "
    "linearised at that sample has 1.08 to 1.32 times the error, by the sample (three of them), "
    "and TNet 1.04 to 1.12 in validation on four others, but not on the one of this seed. The "
    "scale of the prior decides, and the authors' is not known to us. With one 4.3 times larger, "
    "as the code of Li et al. draws it, Tikhonov's error was 22.8 %, near the published one, "
    "TNet's 269 % and 58.9 % from 1 and 100 samples, by shorter training, and the best affine map "
    "had 3.4 times Tikhonov's. That was measured here first; the printed scale was taken "
    "afterwards, and is the easier problem.",
)
