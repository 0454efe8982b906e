"""The same strategy over the ``pytorch_lightning`` distribution's own base class."""

from __future__ import annotations

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy

from lightning_gradsched.slurm import StepMixin
from lightning_gradsched.strategy import GradSchedMixin

StepEnvironment = type("StepEnvironment", (StepMixin, SLURMEnvironment), {"__module__": __name__})

# Made by call: to a type checker the two distributions' bases are unrelated, though their code is
# the same.
GradSchedStrategy = type(
    "GradSchedStrategy",
    (GradSchedMixin, DDPStrategy),
    {
        "__module__": __name__,
        "__doc__": "See ``lightning_gradsched.GradSchedStrategy``.",
        "_step_environment": StepEnvironment,
    },
)
