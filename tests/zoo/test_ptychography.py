"""Ptychography: a known object is found again, real patterns are explained, bad input is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from zoo import evaluate, train
from zoo.data.ptychography import PtychographyDataModule, RandomWindows, WholeScan
from zoo.data.ptychography_file import Scan, read_scan, write_scan
from zoo.data.siemens_star import PATH
from zoo.errors import DataFileError, PhysicsError
from zoo.model.ptychography import IN_CHANNELS, Ptychography
from zoo.net.unet import UNet
from zoo.physics.ptychography import (
    FarField,
    add_patches,
    diffract,
    shifted,
    split_positions,
    take_patches,
)
from zoo.solver.epie import epie
from zoo.solver.gradient_descent import gradient_descent
from zoo.solver.reconstruction import Reconstruction, data_residual, flat_image

_SIDE_PX = 24


def _phantom(shape: tuple[int, int]) -> Tensor:
    """A smooth complex object."""
    row, col = torch.meshgrid(*(torch.arange(side) / 9.0 for side in shape), indexing="ij")
    phase, amplitude = torch.sin(row) * torch.cos(1.3 * col), 1.0 - 0.2 * torch.cos(row + col) ** 2
    return torch.polar(amplitude, 0.7 * phase)


def _probe() -> Tensor:
    at = torch.arange(_SIDE_PX) - _SIDE_PX / 2
    squared = at[:, None] ** 2 + at**2
    return torch.polar(torch.exp(-squared / 40.0), squared / 60.0)


@pytest.fixture(scope="module")
def simulated() -> tuple[Scan, Tensor]:
    """Poisson counts of a phantom over 7 x 7 positions, and the phantom."""
    generator = torch.Generator().manual_seed(0)
    grid = 4.0 * torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0))
    positions_px = (grid + torch.rand(49, 2, generator=generator)).clamp(0.0, 24.0)
    probe = _probe() * math.sqrt(2e5 / float(_probe().abs().square().sum()))
    corners, fractions = split_positions(positions_px)
    image = _phantom((48, 48))
    counts = torch.poisson(diffract(image[None], probe, corners, fractions)[0], generator)
    return Scan(counts, probe, positions_px), image


@pytest.fixture(scope="module")
def simulated_path(simulated: tuple[Scan, Tensor], tmp_path_factory) -> Path:
    scan, _ = simulated
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_scan(path, *(array.numpy() for array in scan), licence="CC0", source="simulated")
    return path


def _error_of(found: Reconstruction, truth: Tensor) -> float:
    """Relative L2 in the well lit middle, but for the factor that no pattern can tell."""
    inner = (slice(14, 34),) * 2
    image, truth = found.image[inner], truth[inner]
    factor = (image.conj() * truth).sum() / image.abs().square().sum()
    return float((factor * image - truth).norm() / truth.norm())


@pytest.mark.parametrize(
    ("solver", "n_epochs"), [(epie, 40), (partial(gradient_descent, patterns_per_step=8), 40)]
)
def test_solvers_find_the_object(
    simulated: tuple[Scan, Tensor], solver: Callable, n_epochs: int
) -> None:
    scan, truth = simulated
    flat = Reconstruction(flat_image(scan), scan.probe)
    found = solver(scan, range(n_epochs), first_probe_epoch=n_epochs)
    # What the truth leaves is the counts' noise.
    noise = data_residual(scan, Reconstruction(truth, scan.probe)).deviance
    assert data_residual(scan, found).deviance < 2.0 * noise
    assert data_residual(scan, flat).deviance > 100.0 * noise
    assert _error_of(found, truth) < 0.1 < _error_of(flat, truth)


@pytest.mark.parametrize("solver", [epie, partial(gradient_descent, patterns_per_step=8)])
def test_solvers_refine_a_wrong_probe(simulated: tuple[Scan, Tensor], solver: Callable) -> None:
    scan, _ = simulated
    at = torch.arange(_SIDE_PX) - _SIDE_PX / 2
    bend = torch.polar(torch.ones(_SIDE_PX, _SIDE_PX), (at[:, None] ** 2 + at**2) / 40.0)
    defocused = scan._replace(probe=scan.probe * bend)
    kept = data_residual(defocused, solver(defocused, range(20), first_probe_epoch=20))
    refined = data_residual(defocused, solver(defocused, range(20)))
    assert refined.amplitude < 0.8 * kept.amplitude


def test_solvers_are_the_same_for_the_same_seed(simulated: tuple[Scan, Tensor]) -> None:
    scan, _ = simulated
    assert torch.equal(epie(scan, range(2)).image, epie(scan, range(2)).image)
    assert not torch.equal(epie(scan, range(2)).image, epie(scan, range(2), seed=1).image)


def test_far_field_equals_its_plain_definition(simulated: tuple[Scan, Tensor]) -> None:
    scan, image = simulated
    whole = torch.tensor([[3.0, 5.0]])
    far = FarField(scan.probe, whole, (48, 48))(image[None])[0, 0]
    plain = np.fft.fft2((scan.probe * image[3:27, 5:29]).numpy(), norm="ortho")
    np.testing.assert_allclose(far.numpy(), np.fft.fftshift(plain), rtol=1e-3, atol=1e-2)


def test_probe_moves_by_fractions_of_a_pixel() -> None:
    moved = shifted(_probe(), torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(moved, _probe().roll((1, -2), (0, 1)), atol=1e-5, rtol=0)
    there_and_back = shifted(
        shifted(_probe(), torch.tensor([0.3, 0.2])), torch.tensor([-0.3, -0.2])
    )
    torch.testing.assert_close(there_and_back, _probe(), atol=1e-5, rtol=0)


def test_a_scan_of_each_image_is_that_scan_of_it_alone() -> None:
    images = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[[0, 0], [2, 3]], [[5, 4], [1, 0]]])
    together = take_patches(images, corners, 4)
    for image, corner, patches in zip(images, corners, together, strict=True):
        assert torch.equal(take_patches(image[None], corner, 4)[0], patches)
    summed = add_patches(together, corners, (9, 8))
    for corner, patches, image in zip(corners, together, summed, strict=True):
        torch.testing.assert_close(add_patches(patches[None], corner, (9, 8))[0], image)


def test_real_scan_is_as_it_was_measured() -> None:
    scan = read_scan(PATH)
    assert scan.counts.shape == (516, 128, 128)
    assert torch.equal(scan.counts, scan.counts.round())
    assert float(scan.counts.max()) == 963.0
    assert float(scan.counts.mean()) == pytest.approx(28.1502, abs=1e-3)
    assert scan.object_shape == (460, 457)
    total = float(scan.counts.sum((1, 2)).mean())
    assert float(scan.probe.abs().square().sum()) == pytest.approx(total, rel=1e-4)
    assert PATH.stat().st_size < 4.5e6
    assert "UChicago Argonne" in (PATH.parent / "LICENSE").read_text()
    assert "AdvancedPhotonSource/tike" in (PATH.parent / "SOURCE.txt").read_text()


@pytest.mark.slow
def test_epie_explains_the_real_patterns() -> None:
    scan = read_scan(PATH)
    flat = data_residual(scan, Reconstruction(flat_image(scan), scan.probe))
    found = data_residual(scan, epie(scan, range(5)))
    assert flat.amplitude > 0.4
    assert found.amplitude < 0.22


def test_windows_are_functions_of_their_key_and_lie_in_the_scan(
    simulated: tuple[Scan, Tensor],
) -> None:
    scan, _ = simulated
    windows = RandomWindows(scan, 32, 6, windows_per_epoch=20, seed=0)
    for index in range(len(windows)):
        counts, corners, fractions, shape = windows[0, index]
        assert counts.shape == (6, _SIDE_PX, _SIDE_PX)
        assert ((corners >= 0) & (corners <= 32 - _SIDE_PX)).all()
        assert fractions.abs().max() <= 0.5
        assert shape.tolist() == [32, 32]
    assert torch.equal(windows[1, 2].counts, windows[1, 2].counts)
    assert not torch.equal(windows[1, 2].counts, windows[2, 2].counts)


def test_windows_are_cut_out_of_the_object(simulated: tuple[Scan, Tensor]) -> None:
    scan, truth = simulated
    windows = RandomWindows(scan, 32, 4, windows_per_epoch=1, seed=0)
    counts, corners, fractions, _ = windows[0, 0]
    first = windows._first_pixel(np.random.default_rng((0, 0, 0)))
    piece = truth[first[0] : first[0] + 32, first[1] : first[1] + 32]
    expected = diffract(piece[None], scan.probe, corners, fractions)[0]
    assert float((counts.sqrt() - expected.sqrt()).norm() / counts.sqrt().norm()) < 0.1


def _model(path: Path, n_passes: int = 1) -> Ptychography:
    torch.manual_seed(0)
    net = UNet(IN_CHANNELS, 2, channels=8, n_levels=2)
    adam = partial(torch.optim.Adam, lr=4e-3)
    return Ptychography(net, adam, str(path), probe_lr=0.01, n_passes=n_passes)


def test_untrained_network_says_nothing(simulated_path: Path) -> None:
    model, scan = _model(simulated_path), WholeScan(read_scan(simulated_path))
    batch = torch.utils.data.default_collate([scan[0]])
    torch.testing.assert_close(model(batch), torch.ones(1, 48, 48, dtype=torch.complex64))
    seen = model._seen(torch.ones(1, 48, 48, dtype=torch.complex64), batch)
    assert seen.shape == (1, IN_CHANNELS, 48, 48)
    assert seen.isfinite().all()
    # The misfit of the true object is little but noise.
    assert float(seen[:, :2].abs().mean()) > 0.01


@pytest.mark.parametrize("n_passes", [1, 2])
def test_network_learns_the_object_without_seeing_it(
    simulated: tuple[Scan, Tensor], simulated_path: Path, n_passes: int
) -> None:
    scan, truth = simulated
    model = _model(simulated_path, n_passes)
    windows = RandomWindows(scan, 40, 16, windows_per_epoch=100, seed=0)
    optimizer = model.configure_optimizers()
    model.log = lambda *_, **__: None
    for index in range(100):
        loss = model.training_step(torch.utils.data.default_collate([windows[0, index]]), index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        image = model(torch.utils.data.default_collate([WholeScan(scan)[0]]))[0]
    flat = Reconstruction(flat_image(scan), scan.probe)
    found = Reconstruction(image, model.probe.detach())
    assert data_residual(scan, found).amplitude < 0.6 * data_residual(scan, flat).amplitude
    assert _error_of(found, truth) < 0.6 * _error_of(flat, truth)


def test_bad_scans_are_named(simulated: tuple[Scan, Tensor], tmp_path: Path) -> None:
    scan, _ = simulated
    counts, probe, positions = (array.numpy() for array in scan)
    path = tmp_path / "scan.h5"
    with pytest.raises(DataFileError, match=r"scan.h5 is not a usable scan.*unable to open"):
        _read_lower(path)
    for change, message in (
        ({"counts": counts[:, :20]}, r"patterns do not fit the probe.*got \[49, 20, 24\]"),
        ({"probe": probe[:20]}, r"probe does not fit.*got torch.complex64 \[20, 24\]"),
        ({"positions": positions[:40]}, r"a position for each of 49 patterns, got 40"),
        ({"positions": positions.reshape(7, 7, 2)}, r"scan does not fit|a position for each"),
        ({"positions": positions - 9.0}, r"positions take the probe of 24 px outside the object"),
    ):
        arrays = {"counts": counts, "probe": probe, "positions": positions, **change}
        write_scan(path, *arrays.values(), licence="CC0", source="simulated")
        with pytest.raises(PhysicsError, match=message):
            read_scan(path)
    with h5py.File(path, "w") as file:
        file["counts"] = counts
    with pytest.raises(DataFileError, match=r"got: layout and version \(None, None\)"):
        read_scan(path)


def _read_lower(path: Path) -> None:
    """h5py's own words begin with a capital in some versions."""
    try:
        read_scan(path)
    except DataFileError as error:
        raise DataFileError(str(error).replace("Unable", "unable")) from error


def test_position_outside_the_object_is_counted_and_named() -> None:
    positions_px = torch.tensor([[0.0, 0.0], [30.0, 2.0], [2.0, -1.0]])
    with pytest.raises(
        PhysicsError, match=r"2 of 3 positions.*number 1, at \(30.0, 2.0\).*rows in 0..6 and"
    ):
        FarField(_probe(), positions_px, (30, 40))


def test_window_that_does_not_fit_is_refused(simulated_path: Path) -> None:
    with pytest.raises(
        PhysicsError, match=r"Expected 24 \(the probe\) to 48 \(the object\), got 9"
    ):
        PtychographyDataModule(str(simulated_path), 9, 4, 8, 1, 0, seed=0)


def test_unet_takes_any_size_and_starts_at_zero() -> None:
    net = UNet(3, 2, channels=4, n_levels=3)
    assert torch.equal(net(torch.randn(2, 3, 13, 22)), torch.zeros(2, 2, 13, 22))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training")
def test_experiment_trains_reports_and_is_scored_again(
    program: Callable[..., Path], simulated_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = program(
        train.main,
        "first",
        "experiment=ptychography",
        "strategy=auto",
        f"data.path={simulated_path}",
        "data.window_px=32",
        "data.n_patterns=4",
        "data.windows_per_epoch=4",
        "net.channels=4",
        "net.n_levels=2",
        "trainer.devices=1",
        "trainer.max_steps=5",
        "trainer.enable_progress_bar=false",
        "report.epie_epochs=2",
        "report.gradient_descent_epochs=2",
        "report.margin_px=8",
    )
    results = json.loads((first / "results.json").read_text())
    assert set(results["residuals"]) == {"network", "ePIE", "gradient descent"}
    assert (first / "reconstruction.png").stat().st_size > 10_000
    assert "ePIE" in capsys.readouterr().out
    best = first / "checkpoints" / "best.ckpt"
    assert results["checkpoint"] == str(best)
    again = program(evaluate.main, "again", f"checkpoint={best}", "trainer.devices=1")
    scored = json.loads((again / "results.json").read_text())["residuals"]
    assert scored["network"] == pytest.approx(results["residuals"]["network"], rel=1e-4)
