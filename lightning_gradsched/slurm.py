"""SLURM as Lightning's strategies see it, by the step that a process belongs to.

Lightning's own environment refuses nodes of unequal size, ignores steps of interactive jobs, and
takes the last four digits of the job's number for a port, which neighbouring jobs may share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from typing_extensions import override

from lightning_gradsched.runtime.topology import Launch, is_interactive, launch_of

if TYPE_CHECKING:
    _Base = SLURMEnvironment
else:
    _Base = object

# Environments of either distribution of Lightning whose processes the pre-flight knows to meet.
_LAUNCHERS = ("SLURMEnvironment", "TorchElasticEnvironment")


class StepMixin(_Base):
    """Over the ``SLURMEnvironment`` of either distribution of Lightning."""

    @property
    def _launch(self) -> Launch:
        launch = launch_of(os.environ)
        assert launch is not None  # this is made in steps alone
        return launch

    @property
    @override
    def main_address(self) -> str:
        return self._launch.address

    @property
    @override
    def main_port(self) -> int:
        return self._launch.port

    @override
    def world_size(self) -> int:
        return self._launch.world_size

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """The pre-flight does, with what it knows of all ranks."""

    @staticmethod
    @override
    def _validate_srun_variables() -> None:
        """Nodes may have unlike numbers of tasks."""


class StepEnvironment(StepMixin, SLURMEnvironment):
    """One rank of a step of SLURM's (``srun``)."""


def in_step(environ: Mapping[str, str]) -> bool:
    """Whether ``srun``, and no torchrun below it, has started this process as one of the ranks."""
    launch = launch_of(environ)
    if launch is None or "SLURM_STEP_ID" not in environ or "TORCHELASTIC_RUN_ID" in environ:
        return False
    return not is_interactive(environ)


def is_launcher(environment: Any) -> bool:
    """Whether ``environment`` takes its ranks from torchrun or ``srun``."""
    return any(kind.__name__ in _LAUNCHERS for kind in type(environment).__mro__)
