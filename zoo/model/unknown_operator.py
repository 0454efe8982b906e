"""Learning an inverse without knowing the operator: empirical risk minimisation from pairs.

del Alamo 2021, arXiv 2108.02744 (Electronic Journal of Statistics 17, 2023): from pairs
(f_i, T f_i + noise), the minimiser over a class of networks of (1 / N) sum ||f_i - F(Y_i)||^2.
"""

from __future__ import annotations

from torch import Tensor

from zoo.data.samples import Sample
from zoo.model.inverse import Inverse


class UnknownOperator(Inverse):
    """Trains `net` by the empirical risk; nothing here sees the operator.

    Logs, beside what `Inverse` does, `test/risk_over_bayes` where the data module has a
    `bayes_risk()`: `squared_error` over the least risk of any estimator, which knows the operator.
    """

    def loss(self, batch: Sample) -> Tensor:
        """The mean over samples of ||f - F(Y)||^2."""
        return (self(batch.data) - batch.truth).flatten(1).square().sum(1).mean()

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        data = self.trainer.datamodule
        if hasattr(data, "bayes_risk"):
            risk = float(self.scores[:, -1].nanmean())
            self.log("test/risk_over_bayes", risk / data.bayes_risk(), sync_dist=True)
