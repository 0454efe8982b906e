"""Losses of the second half of model-constrained autoencoders: each learns both directions.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033 (the mcPAE family); with their names of today in TAEN,
Comput. Methods Appl. Mech. Eng. 446, 2025. Psi_e is trained first, Psi_d then on its results. POP
goes from parameters to observations and back, OPO the other way. First halves, and the second of
POP, are losses of `zoo.loss.model_constrained`.
"""

from __future__ import annotations

from torch import Tensor

from zoo.errors import TrainingDataError
from zoo.loss.model_constrained import SquaredNorm


def surrogate_loss(predicted: Tensor, target: Tensor, data_norm: SquaredNorm) -> Tensor:
    """1/2 ||Psi - target||^2, the mean over samples.

    The target is y for POP's encoder (Psi_e(u)) and OPO's decoder, G(Psi_e(y)) for the decoders of
    mcOPO and TAEN, and the whole state F(Psi_e(y)) for those that are called full.

    Raises:
        TrainingDataError: the surrogate's output has another shape than what it has to learn.
    """
    if predicted.shape != target.shape:
        raise TrainingDataError(
            f"the surrogate does not fit the operator. Expected {list(target.shape)}, got "
            f"{list(predicted.shape)}. Next, set surrogate.n_out={target[0].numel()}."
        )
    return 0.5 * data_norm(target - predicted).mean()
