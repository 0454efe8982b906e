"""The throughput meter: what it counts, on one rank and on two of unlike speed and batch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.ranks import run_ranks
from zoo.callback import throughput
from zoo.callback.throughput import ThroughputMeter, n_samples
from zoo.callback.throughput_peak import compute_dtype, measure_peak_flop_per_s
from zoo.net.flop import forward_flop

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class _Clock:
    """Stands still but for what is put into it: times are asserted without a real clock."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class _Module(L.LightningModule):
    """A step takes `step_s` on the clock, a validation batch 1000 s."""

    def __init__(self, clock: _Clock, step_s: float = 0.5) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.clock, self.step_s, self.n_counted = clock, step_s, 0

    def forward_flop_per_sample(self, batch: Tensor) -> int:
        self.n_counted += 1
        return forward_flop(self.layer, batch[:1])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now_s += self.step_s
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.now_s += 1000.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(
    meter: ThroughputMeter,
    module: _Module,
    *,
    batch_size: int = 4,
    max_steps: int = 12,
    **kwargs: Any,
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[meter],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "devices": 1, **kwargs},
    )
    data = [torch.ones(3)] * (5 * batch_size)
    trainer.fit(module, DataLoader(data, batch_size), DataLoader(data[:1], 1))
    return trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(throughput, "perf_counter", clock)
    return clock


def test_counts_samples_and_time_without_validation_and_warm_up(clock: _Clock) -> None:
    meter, module = ThroughputMeter(every_n_steps=4, warmup_steps=2, peak=False), _Module(clock)
    # An epoch, with a validation at its end, is 5 steps: two validations fall into the windows.
    trainer = _fit(meter, module)
    assert [(w.step, w.samples, w.seconds) for w in meter.windows] == [(6, 16, 2.0), (10, 16, 2.0)]
    # Multiply and add, forward and twice as much backward.
    assert meter.flop_per_sample == 3 * 2 * 15
    assert module.n_counted == 1
    assert float(trainer.progress_bar_metrics["throughput/samples_per_s"]) == 8.0
    assert float(trainer.progress_bar_metrics["throughput/flop_per_s"]) == 8.0 * 90
    assert "throughput/peak_share" not in trainer.progress_bar_metrics


def test_logs_every_reading(clock: _Clock, tmp_path: Path) -> None:
    meter = ThroughputMeter(every_n_steps=3, warmup_steps=1, peak=False)
    logger = CSVLogger(tmp_path, name="", version="")
    _fit(meter, _Module(clock), logger=logger, log_every_n_steps=50)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("throughput/samples_per_s")
    assert [float(row.split(",")[column]) for row in rows] == [8.0] * 3


def test_micro_batches_count_all_their_samples(clock: _Clock) -> None:
    meter = ThroughputMeter(every_n_steps=2, warmup_steps=1, peak=False)
    _fit(meter, _Module(clock), max_steps=5, accumulate_grad_batches=5)
    assert [(w.step, w.samples, w.seconds) for w in meter.windows] == [(3, 40, 5.0), (5, 40, 5.0)]


def test_says_what_it_measured(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ThroughputMeter(every_n_steps=4, warmup_steps=1)
    meter_clock_free = _Module(clock)
    _fit(meter, meter_clock_free)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        "throughput: 8.0 samples/s on 1 rank(s), 0.0 GFLOP/s, 0% of the measured"
    )
    assert meter.windows[0].peak_flop_per_s > 1e8


def _two_ranks(rank: int) -> tuple[list[Any], int | None]:
    clock = _Clock()
    throughput.perf_counter = clock
    meter = ThroughputMeter(every_n_steps=4, warmup_steps=1, peak=False)
    module = _Module(clock, step_s=(0.5, 1.0)[rank])
    _fit(
        meter,
        module,
        batch_size=(4, 2)[rank],
        max_steps=5,
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
    )
    return [tuple(window) for window in meter.windows], meter.flop_per_sample


def test_ranks_add_up_and_the_slowest_sets_the_time() -> None:
    results = run_ranks(2, _two_ranks)
    assert results[0] == results[1] == ([(5, 24.0, 4.0, 0.0)], 90)


def _flop_per_s_of_one_product() -> float:
    a = torch.randn(1024, 1024)
    start_s = time.perf_counter()
    a @ a
    return 2 * 1024**3 / (time.perf_counter() - start_s)


def test_peak_is_that_of_a_real_product() -> None:
    # The fastest of some is no slower than one before or after them, unless other processes slow
    # all of them down, which happens once and not each time; no core does 100 TFLOP/s.
    for _ in range(3):
        before = _flop_per_s_of_one_product()
        peak = measure_peak_flop_per_s(torch.device("cpu"), torch.float32)
        single = min(before, _flop_per_s_of_one_product())
        if peak > 0.3 * single:
            break
    assert 0.3 * single < peak < 1e14


@pytest.mark.parametrize(
    ("plugin", "dtype"),
    [
        (MixedPrecision("bf16-mixed", "cpu"), torch.bfloat16),
        (HalfPrecision("bf16-true"), torch.bfloat16),
        (HalfPrecision("16-true"), torch.float16),
        (Precision(), torch.float32),
    ],
)
def test_peak_has_the_precision_of_the_training(plugin: Precision, dtype: torch.dtype) -> None:
    assert compute_dtype(plugin) is dtype


def test_samples_are_the_length_of_the_first_tensor() -> None:
    assert n_samples({"scale": 2.0, "low": torch.zeros(7, 3), "high": torch.zeros(7, 9)}) == 7


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"warmup_steps": -1}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected every_n_steps >= 1"):
        ThroughputMeter(**options)
