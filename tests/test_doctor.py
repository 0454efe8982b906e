"""`gradsched doctor`: what it finds, plans and refuses, alone and on real ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_gradsched import cli
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.runtime.topology import TORCHRUN_VARIABLES

GRADSCHED = Path(sys.executable).parent / "gradsched"
CHECKOUT = Path(__file__).resolve().parent.parent


NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

def words():
    return nn.EmbeddingBag(100, 8), torch.randint(100, (4, 6))

def two_inputs():
    return nn.Bilinear(3, 4, 5), (torch.ones(2, 3), torch.ones(2, 4))

def frozen():
    return net().requires_grad_(False)

def broken():
    raise KeyError("layer7")

def a_list():
    return [net()]

no_function = 3
"""
MODULE = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader


class Regression(L.LightningModule):
    def __init__(self, width: int, loss: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 1))
        self.has_loss = loss

    def training_step(self, batch):
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return {"loss": loss} if self.has_loss else None


class Data(L.LightningDataModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def train_dataloader(self):
        return DataLoader(torch.ones(8, self.width), batch_size=4)
"""
# The same groups as the repository's own, nothing else in common.
CONF = {
    "train.yaml": """
defaults: [_self_, experiment: small]
model: {_target_: job.Regression, width: "${data.width}"}
data: {_target_: job.Data, width: 16}
threads_per_rank: 1
run_dir: ${hydra:runtime.output_dir}
""",
    "experiment/small.yaml": "# @package _global_\ndata: {width: 32}\n",
    "experiment/no_loss.yaml": "# @package _global_\nmodel: {loss: false}\n",
    "experiment/unbuildable.yaml": "# @package _global_\nmodel: {_target_: job.Nothing}\n",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves run under torchrun or SLURM."""
    for name in list(os.environ):
        if name in TORCHRUN_VARIABLES or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of factories and a conf folder."""
    texts = {"nets.py": NET, "job.py": MODULE}
    texts |= {f"conf/{name}": text for name, text in CONF.items()}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    path, n_threads = list(sys.path), torch.get_num_threads()
    yield tmp_path
    sys.path[:] = path
    torch.set_num_threads(n_threads)
    for name in ("nets", "job"):
        sys.modules.pop(name, None)


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives the only rank of one."""
    values = ("0", "1", "127.0.0.1", str(free_port()))
    for name, value in zip(TORCHRUN_VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(n_ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    ranks = ["--standalone", "--nproc-per-node", str(n_ranks), "--no-python"]
    return subprocess.run(
        [GRADSCHED.with_name("torchrun"), *ranks, str(GRADSCHED), "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_alone_it_tells_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"lightning-gradsched {cli.__version__}" in out
    assert "not measured: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set" in out


def test_on_two_ranks_it_measures_and_plans_for_a_profile(tmp_path: Path) -> None:
    params = tuple(ParamProfile(f"p{i}", 1 << 20, ready_s=0.01 * (i + 1)) for i in range(8))
    path = tmp_path / "profile.json"
    path.write_text(BackwardProfile(params, forward_s=0.05, backward_s=0.08).to_json())
    result = torchrun(2, "--profile", str(path))
    assert result.returncode == 0, result.stderr
    assert "ranks      2, nodes 1, at most 2 ranks a node, backend gloo" in result.stdout
    assert result.stdout.count("algbw") == 3
    assert "8 parameters, 8.0 MiB, forward 50.0 ms, backward 80.0 ms" in result.stdout
    assert "  ddp " in result.stdout
    assert result.stdout.count("planner='") == 1, "rank 0 alone speaks"


@pytest.mark.slow
def test_on_two_ranks_it_steps_a_module_and_plans_for_it(checkout: Path) -> None:
    result = torchrun(2, "--module", "nets:net", "--input", "8,64")
    assert result.returncode == 0, result.stderr
    assert "model      4 parameters" in result.stdout
    assert "  ddp " in result.stdout
    assert result.stdout.count("planner='") == 1


@pytest.mark.slow
def test_on_two_ranks_it_steps_an_experiment_and_plans_for_it(checkout: Path) -> None:
    result = torchrun(2, "--experiment", "small")
    assert result.returncode == 0, result.stderr
    # 32 x 32 + 32 + 32 + 1 floats: the experiment's own width went into data and model.
    assert "model      4 parameters, 0.0 MiB" in result.stdout
    assert "  ddp " in result.stdout


def test_on_one_rank_it_steps_an_experiment_and_plans_for_it(
    checkout: Path, one_rank: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--experiment", "small"]) == 0
    out = capsys.readouterr().out
    assert "model      4 parameters, 0.0 MiB" in out
    assert "  ddp " in out


@pytest.mark.parametrize("factory", ["words", "two_inputs"])
def test_a_factory_may_give_an_example_input_of_any_kind(
    checkout: Path, one_rank: None, factory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--module", f"nets:{factory}"]) == 0
    out = capsys.readouterr().out
    assert "ranks      1, nodes 1" in out
    assert "one rank reduces nothing" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--module", "nets"], "--module nets: expected package.module:factory, got 'nets'"),
        (["--module", "nowhere:net"], "No module named 'nowhere'"),
        (["--module", "nets:nothing"], "has no attribute 'nothing'"),
        (["--module", "nets:no_function"], "expected a function, got int no_function"),
        (["--module", "nets:broken"], "--module nets:broken: KeyError: 'layer7'"),
        (["--module", "nets:a_list"], "from the factory, got list"),
        (["--module", "nets:net"], "expected an example input, got none"),
        (["--module", "nets:frozen", "--input", "8,64"], "no parameters to train"),
        (["--module", "nets:net", "--input", "8,63"], "a step failed: RuntimeError: mat1 and mat2"),
        (["--input", "8,64"], "--input: expected --module beside it"),
        (["--experiment", "large"], "expected one of ['no_loss', 'small', 'unbuildable']"),
        (["--experiment", "unbuildable"], "--experiment unbuildable: InstantiationException"),
        (["--experiment", "no_loss"], "expected a loss that depends on parameters, got None"),
    ],
)
def test_what_cannot_be_planned_for_is_named(
    checkout: Path,
    one_rank: None,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err


def test_an_experiment_needs_a_checkout(
    one_rank: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--experiment", "small"]) == 2
    assert f"expected {tmp_path}/conf/train.yaml, got no such file" in capsys.readouterr().err


def test_a_plan_needs_a_network(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--experiment", "small"]) == 2
    assert "planning for small needs a network: RANK, WORLD_SIZE" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["", "8,x", "8,0"])
def test_a_shape_that_is_none_is_named(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--module", "nets:net", "--input", shape])
    assert f"expected a shape like 8,3,24,24, got '{shape}'" in capsys.readouterr().err


@pytest.mark.slow
def test_it_plans_for_the_zoos_own_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("conf", "zoo"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    monkeypatch.chdir(tmp_path)  # its data is written below
    result = torchrun(2, "--experiment", "super_resolution")
    assert result.returncode == 0, result.stderr
    assert "  ddp " in result.stdout


def test_it_bounds_its_wait_for_ranks_that_do_not_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    values = ("1", "2", "127.0.0.1", port)
    for name, value in zip(TORCHRUN_VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    assert cli.main(["doctor", "--timeout-s", "2"]) == 2
    assert "rank 0 of 2 at 127.0.0.1 within 2 s, got" in capsys.readouterr().err
