"""Score a trained checkpoint: `python -m zoo.evaluate checkpoint=PATH`."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from zoo.checkpoint import config_of, given_checkpoint, read_checkpoint, restored_model
from zoo.errors import user_errors
from zoo.runtime import CONFIG_DIR, build_trainer, limit_threads, print_closing


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="evaluate")
def main(config: DictConfig) -> None:
    with user_errors():
        evaluate(config)


def evaluate(config: DictConfig) -> None:
    """Rebuild the model from the configuration in the checkpoint, test it, write the report.

    Raises:
        UserError: no checkpoint is given, or it or the data are no good.
    """
    path = given_checkpoint(config)
    checkpoint = read_checkpoint(path)
    trained = config_of(checkpoint, path)
    if config.data_path is not None:
        trained.data.path = config.data_path
    limit_threads(config.threads_per_rank)
    model, datamodule = restored_model(checkpoint, trained, path), instantiate(trained.data)
    # What the data module keeps for its model, such as the scaling of channels.
    datamodule.load_state_dict(checkpoint.get(type(datamodule).__qualname__, {}))
    build_trainer(config, [], False).test(model, datamodule, verbose=False)
    pictures = datamodule.test_dataloader().dataset
    run_dir = Path(config.run_dir)
    paths = instantiate(trained.report).write(model, pictures, run_dir, path)
    print_closing({"checkpoint": path, **paths}, {})


if __name__ == "__main__":
    main()
