"""Generate a data set: `python -m zoo.data.generate dataset=cbed size=tiny`."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from zoo.errors import user_errors
from zoo.runtime import CONFIG_DIR, limit_threads, print_closing


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="generate")
def main(config: DictConfig) -> None:
    with user_errors():
        generate(config)


def generate(config: DictConfig) -> None:
    """Write the shards of `config.dataset` that are not there yet, and their manifest.

    Raises:
        UserError: the folder holds another data set, or cannot be written to.
    """
    # Each process one thread: samples are made in parallel, and the same for any number of cores.
    limit_threads(1)
    folder = Path(config.folder)
    manifest = instantiate(config.dataset).generate(folder, config.n_processes)
    n_shards, nbytes_MB = len(manifest.files), manifest.nbytes / 1e6  # noqa: N806
    print(f"{manifest.n_samples} samples in {n_shards} shards, {nbytes_MB:.1f} MB")
    print_closing({"manifest": folder / "manifest.json"}, {})


if __name__ == "__main__":
    main()
