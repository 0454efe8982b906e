"""One training of `benchmarks.weak_scaling`; Lightning starts it again for each further rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from benchmarks.environment import write_json
from lightning_gradsched import GradSchedStrategy
from zoo.callback.throughput import ThroughputMeter
from zoo.runtime import CONFIG_DIR, quiet_answered_warnings

# Beyond gradsched's profile and trials, which are training steps, too.
WARMUP_STEPS = 40
WINDOW_STEPS = 10


def main() -> None:
    strategy, n_ranks, n_steps, folder, output = sys.argv[1:]
    torch.set_num_threads(1)
    quiet_answered_warnings()
    overrides = [
        "experiment=cbed_tiny",
        f"data.path={folder}",
        # No longer than this benchmark: the schedule is not what is measured.
        f"trainer.max_steps={WARMUP_STEPS + int(n_steps)}",
        "hydra.runtime.output_dir=.",
    ]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
    config.scheduler.n_steps = config.trainer.max_steps
    L.seed_everything(0, workers=True, verbose=False)
    model, data = instantiate(config.model), instantiate(config.data)
    data.prepare_data()
    meter = ThroughputMeter(every_n_steps=WINDOW_STEPS, warmup_steps=WARMUP_STEPS, peak=False)
    L.Trainer(
        accelerator="cpu",
        devices=int(n_ranks),
        strategy="ddp" if strategy == "ddp" else GradSchedStrategy(record_every_n_steps=0),
        max_steps=config.trainer.max_steps,
        callbacks=[meter],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        write_json(Path(output), [w.samples / w.seconds for w in meter.windows])
        print(json.dumps(len(meter.windows)))


if __name__ == "__main__":
    main()
