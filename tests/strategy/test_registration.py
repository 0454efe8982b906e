"""``strategy="gradsched"`` is known whichever package comes first; a process for each order."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TRAINER = """
trainer = {module}.Trainer(strategy="{name}", accelerator="cpu", devices=2, logger=False)
base = __import__("{module}.strategies", fromlist=["x"]).DDPStrategy
print(type(trainer.strategy).__name__, isinstance(trainer.strategy, base),
      trainer.strategy._start_method)
"""


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("imports", "module"),
    [
        ("import lightning_gradsched; import lightning.pytorch", "lightning.pytorch"),
        ("import lightning.pytorch; import lightning_gradsched", "lightning.pytorch"),
        ("import lightning_gradsched; import pytorch_lightning", "pytorch_lightning"),
        ("import pytorch_lightning; import lightning_gradsched", "pytorch_lightning"),
    ],
)
def test_the_name_is_known_in_either_order(imports: str, module: str) -> None:
    assert run(imports + TRAINER.format(module=module, name="gradsched")) == (
        "GradSchedStrategy True popen"
    )


def test_all_four_names_with_their_start_methods() -> None:
    code = """
import lightning_gradsched, lightning_gradsched, lightning.pytorch.strategies as s
for name in sorted(n for n in s.StrategyRegistry if n.startswith("gradsched")):
    print(name, s.StrategyRegistry.get(name)._start_method)
"""
    assert run(code).split("\n") == [
        "gradsched popen",
        "gradsched_fork fork",
        "gradsched_notebook fork",
        "gradsched_spawn spawn",
    ]


@pytest.mark.parametrize(
    "imports",
    [
        "import lightning_gradsched; from lightning.fabric import Fabric",
        "from lightning.fabric import Fabric; import lightning_gradsched",
    ],
)
def test_fabric_knows_the_name_in_either_order(imports: str) -> None:
    code = """
from lightning.fabric.strategies import STRATEGY_REGISTRY, DDPStrategy
for name in sorted(n for n in STRATEGY_REGISTRY if n.startswith("gradsched")):
    strategy = Fabric(strategy=name, accelerator="cpu", devices=2).strategy
    print(type(strategy).__name__, isinstance(strategy, DDPStrategy), strategy._start_method)
"""
    assert run(f"{imports}\n{code}").split("\n") == [
        f"GradSchedFabricStrategy True {method}" for method in ("popen", "fork", "fork", "spawn")
    ]


def test_importing_the_package_and_its_core_loads_neither_torch_nor_lightning() -> None:
    code = """
import sys, lightning_gradsched
import lightning_gradsched.core.candidates, lightning_gradsched.core.report, lightning_gradsched.cli
print(sorted(m for m in sys.modules if m in ("torch", "lightning", "pytorch_lightning")))
"""
    assert run(code) == "[]"


def test_the_finder_steps_aside_and_leaves_the_modules_loader_alone() -> None:
    code = """
import sys, lightning_gradsched, lightning.pytorch.strategies as s
from lightning_gradsched._registration import _Finder
print([f.target for f in sys.meta_path if isinstance(f, _Finder)],
      type(s.__loader__).__name__, type(s.__spec__.loader).__name__)
"""
    assert run(code) == "['pytorch_lightning.strategies'] SourceFileLoader SourceFileLoader"


def test_public_names_are_sorted_and_importable() -> None:
    import lightning_gradsched

    assert lightning_gradsched.__all__ == sorted(lightning_gradsched.__all__)
    for name in lightning_gradsched.__all__:
        assert getattr(lightning_gradsched, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'GradSched'"):
        lightning_gradsched.GradSched  # noqa: B018
