"""Masks for files from a checkpoint: `python -m zoo.predict checkpoint=PATH files=[FILE]`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from zoo.checkpoint import config_of, given_checkpoint, read_checkpoint, restored_model
from zoo.data.climate_input import Snapshots, open_snapshots
from zoo.data.climate_normalization import Normalization
from zoo.data.values import not_finite
from zoo.errors import (
    BadSampleError,
    CheckpointError,
    GridError,
    UserError,
    paragraph,
    user_errors,
)
from zoo.progress import progress
from zoo.report.climate_events import EVENT_CHANNELS, Event, events_of, write_events
from zoo.report.climate_masks import require_format, write_masks
from zoo.report.segmentation_figure import MapRow, save_comparison
from zoo.runtime import CONFIG_DIR, limit_threads, print_closing

_DATA_KEY = "ClimateDataModule"
_DRAWN = ("TMQ", "PSL")


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="predict")
def main(config: DictConfig) -> None:
    with user_errors():
        predict(config)


def predict(config: DictConfig) -> None:
    """Write masks, maps and the table of events; name the files that were no good.

    Raises:
        UserError: no checkpoint or file is given, or the checkpoint is no good.
        SystemExit: with status 1, after all files, where any was no good.
    """
    limit_threads(config.threads_per_rank)
    require_format(config.format)
    paths = _files(config.files)
    predictor = Predictor.of(config)
    run_dir = Path(config.run_dir)
    events: list[Event] = []
    failed: dict[Path, str] = {}
    names = _output_names(paths)
    for path in progress(paths, len(paths), "Predicting"):
        try:
            events += _predict_file(predictor, path, names[path], run_dir, config)
        except UserError as error:
            failed[path] = paragraph(error)
    write_events(run_dir / "events.csv", events)
    _print_summary(run_dir, len(paths) - len(failed), events, predictor.class_names)
    if failed:
        print(f"{len(failed)} of {len(paths)} files could not be used:", file=sys.stderr)
        for path, reason in failed.items():
            print(f"  {path}\n    {reason}", file=sys.stderr)
        raise SystemExit(1)


@dataclass(frozen=True)
class Predictor:
    """A trained network with all that it needs to know of its data.

    Args:
        model: [N, C, H, W] normalised -> logits [N, n_classes, H, W].
        grid_shape: of training; None takes any.
    """

    model: torch.nn.Module
    scaling: Normalization
    class_names: tuple[str, ...]
    grid_shape: tuple[int, int] | None
    device: torch.device

    @classmethod
    def of(cls, config: DictConfig) -> Predictor:
        """From a checkpoint that was trained with data=climate.

        Raises:
            CheckpointError: it was not, or it is damaged.
        """
        path = given_checkpoint(config)
        checkpoint = read_checkpoint(path)
        data = checkpoint.get(_DATA_KEY)
        if not data:
            raise CheckpointError(
                f"{path} was not trained on climate snapshots. Expected {_DATA_KEY!r} in it, got "
                f"{sorted(checkpoint)}. Next, use a checkpoint of experiment=climate_tiny."
            )
        model = restored_model(checkpoint, config_of(checkpoint, path), path)
        device = _device(config.accelerator)
        return cls(
            model.eval().to(device),
            Normalization.from_state(data["normalization"]),
            tuple(data["class_names"]),
            None if config.any_grid else tuple(data["grid_shape"]),
            device,
        )

    @torch.inference_mode()
    def mask(self, fields: dict[str, np.ndarray], where: str) -> np.ndarray:
        """[H, W] uint8 classes of one snapshot.

        Raises:
            BadSampleError: a channel holds NaN. GridError: the network does not take this grid.
        """
        shape = next(iter(fields.values())).shape
        if self.grid_shape is not None and shape != self.grid_shape:
            raise GridError(
                f"{where}: expected the grid of training, {self.grid_shape}, got {shape}. Next, "
                "regrid the file, or set any_grid=true to try it as it is."
            )
        channels = self.scaling.channels
        for name in channels:
            if wrong := not_finite(fields[name]):
                raise BadSampleError(
                    f"{where}: {name} expected {wrong}. Next, fill what is missing."
                )
        stacked = np.stack([fields[name] for name in channels], axis=-1)
        batch = torch.from_numpy(stacked).movedim(-1, 0)[None].to(self.device)
        try:
            logits = self.model(self.scaling(batch))
        except (RuntimeError, ValueError) as error:
            raise GridError(
                f"{where}: the network does not take {list(batch.shape)}: {error}. Next, regrid "
                "the file to the grid of training."
            ) from error
        return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def _predict_file(
    predictor: Predictor, path: Path, name: str, run_dir: Path, config: DictConfig
) -> list[Event]:
    """Write the masks and the map of a file; what events there are."""
    events: list[Event] = []
    masks: list[np.ndarray] = []
    rows: list[MapRow] = []
    variables = config.variables and OmegaConf.to_container(config.variables)
    with open_snapshots(path, variables) as snapshots:
        channels = predictor.scaling.channels
        more = [each for each in (*EVENT_CHANNELS, *_DRAWN) if each in snapshots.names]
        wanted = list(dict.fromkeys([*channels, *more]))
        drawn = _drawn_steps(len(snapshots.times), config.n_drawn)
        for step, time in enumerate(snapshots.times):
            fields = snapshots.read(step, wanted)
            masks.append(predictor.mask(fields, f"{path}, time {time}"))
            known = {each: fields[each] for each in more}
            events += events_of(
                masks[-1], snapshots.grid, predictor.class_names, known, str(path), time
            )
            if step in drawn:
                rows.append(_row(snapshots, step, fields, masks[-1], channels))
        times, grid = snapshots.times, snapshots.grid
    target = run_dir / "masks" / f"{name}.{config.format}"
    write_masks(target, np.stack(masks), grid, times, predictor.class_names)
    if rows:
        save_comparison(
            run_dir / "maps" / f"{name}.png", rows, list(predictor.class_names), path.name
        )
    return events


def _row(
    snapshots: Snapshots,
    step: int,
    fields: dict[str, np.ndarray],
    mask: np.ndarray,
    channels: Sequence[str],
) -> MapRow:
    labels, grid = snapshots.labels(step), snapshots.grid
    drawn = [name for name in _DRAWN if name in fields] or list(channels[:1])
    step_deg = grid.longitude_step_deg
    edges = (float(grid.longitude_deg[0]), float(grid.longitude_deg[-1] + step_deg))
    return MapRow(
        name=f"time {snapshots.times[step]}",
        fields={name: torch.from_numpy(fields[name]) for name in drawn},
        truth=None if labels is None else torch.from_numpy(labels),
        prediction=torch.from_numpy(mask),
        latitude_deg=grid.latitude_deg.tolist(),
        scores=f"{float((mask > 0).mean()):.2%} of pixels",
        longitude_deg=edges,
    )


def _drawn_steps(n_steps: int, n_drawn: int) -> set[int]:
    """So many, evenly spread, the first and the last among them."""
    if n_drawn < 1:
        return set()
    return {round(step) for step in np.linspace(0, n_steps - 1, min(n_drawn, n_steps))}


def _files(patterns: Sequence[str]) -> list[Path]:
    """What is named, and what patterns match, in this order; each once."""
    found: list[str] = []
    for pattern in patterns:
        matches = sorted(glob(pattern, recursive=True))
        # A name that matches nothing stays: it is missing, and said to be at the end.
        found += matches or [pattern]
    if not found:
        raise UserError(
            "no files given. Expected files=[FILE,...], HDF5 or NetCDF; next, name some."
        )
    return [Path(name) for name in dict.fromkeys(found)]


def _output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each file's output: its stem, numbered where stems are alike."""
    count = Counter(path.stem for path in paths)
    return {
        path: path.stem if count[path.stem] == 1 else f"{path.stem}-{number}"
        for number, path in enumerate(paths)
    }


def _device(accelerator: str) -> torch.device:
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator: expected auto, cpu or gpu, got {accelerator!r}.")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: there is no GPU here. Next, leave it out.")
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def _print_summary(
    run_dir: Path, n_files: int, events: Sequence[Event], class_names: Sequence[str]
) -> None:
    count = Counter(event.event for event in events)
    found = ", ".join(f"{count[name]} {name.replace('_', ' ')}s" for name in class_names[1:])
    print(f"{n_files} files: {found}")
    paths: dict[str, Any] = {"events": run_dir / "events.csv"}
    if n_files:
        paths |= {"masks": run_dir / "masks", "maps": run_dir / "maps"}
    print_closing(paths, {})


if __name__ == "__main__":
    main()
