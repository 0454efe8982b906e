"""Copies a data set to a disk of the node: `python -m zoo.data.stage FOLDER TARGET`."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from zoo.data.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest
from zoo.data.sampler import World
from zoo.data.shards import write_error
from zoo.errors import DataFileError, DiskFullError, TruncatedFileError, user_errors
from zoo.files import written_whole

Stage = Literal["off", "node", "shard"]
STAGES = ("off", "node", "shard")
_CHUNK_NBYTES = 8 << 20
_RESERVE = 0.02
"""Of a disk, which stays free: file systems become slow or fail before they are quite full."""


def files_of_node(manifest: Manifest, stage: Stage, world: World) -> list[int]:
    """Positions of the files that lie on this rank's node.

    `node`: all of them, each node reads the shared file system once. `shard`: file `f` on node
    `f % n_nodes`, so that each byte is read once in all; the sampler must then be `node`.
    """
    everything = list(range(len(manifest.files)))
    if stage != "shard":
        return everything
    return everything[world.rank // (world.world_size // world.n_nodes) :: world.n_nodes]


def files_to_copy(manifest: Manifest, stage: Stage, world: World) -> list[int]:
    """This rank's share of `files_of_node`: the ranks of a node copy together."""
    per_node = world.world_size // world.n_nodes
    return files_of_node(manifest, stage, world)[world.rank % per_node :: per_node]


def require_room(root: Path, target: Path, manifest: Manifest, files: Sequence[int]) -> int:
    """Bytes that are still to be copied; before the first is.

    Raises:
        DiskFullError: the target's disk has less room than that.
    """
    missing = [manifest.files[number] for number in files]
    needed = sum(entry.nbytes for entry in missing if not _is_there(target, entry))
    target.mkdir(parents=True, exist_ok=True)
    usage = shutil.disk_usage(target)
    room = max(0, usage.free - int(_RESERVE * usage.total))
    if needed > room:
        raise DiskFullError(
            f"{target} has too little room. Expected {needed / 1e9:.3f} GB for what is missing of "
            f"{root}, got {room / 1e9:.3f} GB (2 % of the disk stay free). Nothing was copied. "
            "Next, make room, choose another data.stage_folder, or data.stage=shard or off."
        )
    return needed


def copy_files(
    root: Path,
    target: Path,
    manifest: Manifest,
    files: Sequence[int],
    n_threads: int = 4,
    progress: Callable[[Iterable[Any], int], Iterator[Any]] | None = None,
) -> int:
    """Copy files of the manifest that are not there; how many bytes were read.

    Each is read once, its checksum taken on the way; it appears under its name only when whole and
    right. Interrupted and called again, it goes on with the files that are missing.

    Raises:
        DiskFullError, TruncatedFileError, DataFileError: what is wrong with which file; finished
            files stay.
    """
    entries = [manifest.files[number] for number in files]
    missing = [entry for entry in entries if not _is_there(target, entry)]
    track = progress or (lambda done, _: iter(done))
    # Reading, hashing and writing all run without the interpreter's lock.
    with ThreadPoolExecutor(n_threads) as pool:
        jobs = [
            pool.submit(_copy, root / entry.path, target / entry.path, entry) for entry in missing
        ]
        try:
            for job in track(as_completed(jobs), len(jobs)):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sum(entry.nbytes for entry in missing)


def _is_there(target: Path, entry: FileEntry) -> bool:
    path = target / entry.path
    return path.exists() and path.stat().st_size == entry.nbytes


def _copy(source: Path, path: Path, entry: FileEntry) -> None:
    digest, n_copied = hashlib.sha256(), 0
    try:
        # The name is this file's alone: only one rank of a node copies it.
        beside = path.with_name(f".{path.name}.partial")
        with written_whole(path, beside) as fresh:
            with _opened(source) as reader, fresh.open("wb") as writer:
                while chunk := reader.read(_CHUNK_NBYTES):
                    digest.update(chunk)
                    writer.write(chunk)
                    n_copied += len(chunk)
            _require_same(source, entry, n_copied, digest.hexdigest())
    except OSError as error:
        raise write_error(path, error) from error


def _opened(source: Path) -> Any:
    try:
        return source.open("rb")
    except OSError as error:
        raise DataFileError(
            f"cannot read {source}: {error}. Expected a file, as its manifest lists it. Next, copy "
            "it there again."
        ) from error


def _require_same(source: Path, entry: FileEntry, nbytes: int, sha256: str) -> None:
    if nbytes != entry.nbytes:
        kind = TruncatedFileError if nbytes < entry.nbytes else DataFileError
        raise kind(
            f"{source}: expected {entry.nbytes} bytes, as its manifest says, got {nbytes}. Next, "
            "copy it there again."
        )
    if entry.sha256 is not None and sha256 != entry.sha256:
        raise DataFileError(
            f"{source} has changed, or was read wrongly: expected sha256 {entry.sha256}, got "
            f"{sha256}. Next, run `python -m zoo.data.verify {source.parent}`."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: the whole data set, or one node's part of it."""
    from zoo.progress import labelled

    options = _parser().parse_args(arguments)
    with user_errors():
        manifest = read_manifest(options.folder)
        node, _, n_nodes = options.part.partition("/")
        world = World(int(n_nodes), int(node), int(n_nodes))
        files = files_of_node(manifest, "shard", world)
        require_room(options.folder, options.target, manifest, files)
        nbytes = copy_files(
            options.folder, options.target, manifest, files, options.threads, labelled("Staging")
        )
        manifest.save(options.target / MANIFEST_NAME)
        print(
            f"{options.target}: {len(files)} of {len(manifest.files)} files, "
            f"{nbytes / 1e9:.3f} GB copied now"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.data.stage",
        description="Copy a data set, file by file, each checked by size and checksum; run "
        "again, it goes on with what is missing. On each node: srun --ntasks-per-node=1 python ...",
    )
    parser.add_argument("folder", type=Path, help="the folder that holds manifest.json")
    parser.add_argument("target", type=Path, help="a folder on the node's own disk")
    parser.add_argument(
        "--part", default="0/1", help="NODE/NODES: only this node's files; default: 0/1, all"
    )
    parser.add_argument("--threads", type=int, default=4, help="files copied at a time; default: 4")
    return parser


if __name__ == "__main__":
    main()
