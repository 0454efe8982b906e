"""Adds a regularisation term to the loss of any LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from zoo.errors import UserError


class Regularize(Callback):
    """Adds `term(network, its input)` to what `training_step` returns, and logs it.

    The term is computed inside `training_step`: accumulation, loss scaling and the strategy treat
    it as part of the model's own loss. The network's input is that of its last call in the step.
    What a term keeps between steps, such as vectors of power iterations, is in the checkpoint, as
    this callback's state. It is not synchronised: terms of weights alone are the same on all ranks
    because the weights are, terms of the data are each rank's own (`zoo.loss.jacobian`).

    Args:
        term: a module of `zoo.loss`: (network, input) -> scalar.
        module: qualified name of the network inside the LightningModule.
    """

    def __init__(self, term: nn.Module, module: str = "net") -> None:
        self.term = term
        self.module = module
        self._input: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.term.bind(self._network(pl_module))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.term.to(pl_module.device)
        self._hook = self._network(pl_module).register_forward_pre_hook(self._keep_input)
        self._step = pl_module.training_step
        pl_module.training_step = self._regularized(pl_module, self._step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._undo(pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if "training_step" in vars(pl_module):
            self._undo(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return self.term.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.term.load_state_dict(state_dict)

    def _undo(self, pl_module: L.LightningModule) -> None:
        self._hook.remove()
        del pl_module.training_step

    def _keep_input(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input = inputs[0].detach()

    def _network(self, pl_module: L.LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            names = [name for name, _ in pl_module.named_children()]
            raise UserError(
                f"{type(pl_module).__name__} has no module {self.module!r} to regularise. Expected "
                f"one of {names} or inside them. Next, set callbacks.regularize.module=NAME."
            ) from error

    def _regularized(
        self, pl_module: L.LightningModule, step: Callable[..., Any]
    ) -> Callable[..., Any]:
        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._input = None
            output = step(*args, **kwargs)
            if output is None or self._input is None:
                return output
            x = self._input
            term = self.term(self._network(pl_module), x)
            # The term calls the network too, perhaps inside a transform of torch.func.
            self._input = None
            pl_module.log("train/regularization", term.detach(), batch_size=len(x))
            if isinstance(output, dict):
                return output | {"loss": output["loss"] + term}
            return output + term

        return training_step
