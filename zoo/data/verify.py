"""Are the files what their manifest says? `python -m zoo.data.verify FOLDER --level full`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import h5py
import numpy as np

import zoo.errors
from zoo.data.agreement import Agreement
from zoo.data.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    read_manifest,
    sha256_of,
)
from zoo.data.schema import Field, Schema
from zoo.data.source import Source, open_source
from zoo.data.values import bad_sample, wrong_values
from zoo.errors import (
    DataFileError,
    EmptySplitError,
    TruncatedFileError,
    UserError,
    user_errors,
)

Level = Literal["off", "sizes", "open", "full"]
LEVELS = ("off", "sizes", "open", "full")
Policy = Literal["raise", "skip", "substitute"]
POLICIES = ("raise", "skip", "substitute")
_SHOWN = 5


class Finding(NamedTuple):
    """What is wrong: with a whole file of the manifest, or with one sample in it."""

    file: int
    sample: int | None
    kind: str
    text: str


def verify(
    root: Path,
    manifest: Manifest,
    level: Level = "full",
    files: Iterable[int] | None = None,
    fields: Schema | None = None,
) -> Iterable[list[Finding]]:
    """What is wrong with each file, file by file.

    `sizes`: the file is there and as long as it was. `open`: its datasets have the shapes and types
    of the schema, and HDF5 finds it whole. `full`: each sample is read; no NaN or infinity, labels
    in range, the checksum where the manifest has one.

    Args:
        files: positions in the manifest; all by default.
        fields: what will be read of them; the manifest's schema by default.
    """
    for number in range(len(manifest.files)) if files is None else files:
        yield _verify_file(root, manifest, number, level, fields or manifest.schema)


def _verify_file(
    root: Path, manifest: Manifest, number: int, level: Level, fields: Schema
) -> list[Finding]:
    if level == "off":
        return []
    entry = manifest.files[number]
    path = root / entry.path
    try:
        _require_size(path, entry)
        if level == "sizes":
            return []
        with open_source(path, fields, entry.dataset) as source:
            _require_length(source, entry)
            bad = _bad_samples(source, fields, number) if level == "full" else []
        if level == "full" and not bad:
            _require_checksum(path, entry)
        return bad
    except DataFileError as error:
        return [Finding(number, None, type(error).__name__, str(error))]


def _require_size(path: Path, entry: FileEntry) -> None:
    if not path.exists():
        raise DataFileError(
            f"no data file {path}. Expected one, as its manifest lists it. Next, copy it again, or "
            "leave its samples out with data.on_bad=skip."
        )
    if (nbytes := path.stat().st_size) != entry.nbytes:
        kind = TruncatedFileError if nbytes < entry.nbytes else DataFileError
        raise kind(
            f"{path} is {'truncated' if nbytes < entry.nbytes else 'too long'}. Expected "
            f"{entry.nbytes} bytes, got {nbytes}. Next, copy it again, or leave its samples out "
            "with data.on_bad=skip."
        )


def _require_length(source: Source, entry: FileEntry) -> None:
    if source.n_samples != entry.n_samples:
        raise DataFileError(
            f"{source.path}: expected {entry.n_samples} samples, got {source.n_samples}. Next, "
            "make the manifest again, or copy the file again."
        )


def _require_checksum(path: Path, entry: FileEntry) -> None:
    if entry.sha256 is not None and (got := sha256_of(path)) != entry.sha256:
        raise DataFileError(
            f"{path} has changed. Expected sha256 {entry.sha256}, got {got}. Next, copy it again."
        )


def _bad_samples(source: Source, fields: Schema, number: int) -> list[Finding]:
    buffers = {name: np.empty(field.read_shape, field.dtype) for name, field in fields.items()}
    findings = []
    for sample in range(source.n_samples):
        for name, buffer in buffers.items():
            source.read(name, sample, buffer)
            if (wrong := wrong_values(fields[name], buffer)) is not None:
                error = bad_sample(source.path, sample, fields[name], wrong)
                findings.append(Finding(number, sample, type(error).__name__, str(error)))
                break
    return findings


def verify_together(
    root: Path,
    manifest: Manifest,
    level: Level,
    agreement: Agreement,
    shares: Sequence[Sequence[int]],
    rank: int,
    fields: Schema | None = None,
) -> list[Finding]:
    """The findings of all ranks, on every rank; each rank looks at its share of the files.

    Args:
        shares: positions of files in the manifest, by rank.
    """
    own = [f for findings in verify(root, manifest, level, shares[rank], fields) for f in findings]
    gathered = agreement.gather([tuple(finding) for finding in own])
    return sorted({Finding(*finding) for findings in gathered for finding in findings}, key=_place)


def _place(finding: Finding) -> tuple[int, int]:
    return finding.file, -1 if finding.sample is None else finding.sample


def without_bad(
    indices: np.ndarray, manifest: Manifest, findings: Sequence[Finding], policy: Policy
) -> np.ndarray:
    """A split's samples under a policy: what all ranks compute alike from the same findings.

    `skip` leaves bad samples out; `substitute` reads the next good one of the split in the place of
    each, so that its length stays.

    Raises:
        DataFileError: or the kind of the first finding, with `raise` and any finding in the split.
        EmptySplitError: no good sample is left.
    """
    is_bad = np.isin(indices, _samples_of(manifest, findings))
    if not is_bad.any():
        return indices
    if policy == "raise":
        raise _as_error([f for f in findings if np.isin(_samples_of(manifest, [f]), indices).any()])
    good = np.flatnonzero(~is_bad)
    if not len(good):
        raise EmptySplitError(
            f"all {len(indices)} samples of the split are bad. {findings[0].text}"
        )
    if policy == "skip":
        return indices[good]
    following = good[np.searchsorted(good, np.arange(len(indices))) % len(good)]
    return indices[following]


def _samples_of(manifest: Manifest, findings: Sequence[Finding]) -> np.ndarray:
    first = manifest.first_samples
    ranges = [
        np.arange(first[f.file], first[f.file + 1])
        if f.sample is None
        else first[f.file : f.file + 1] + f.sample
        for f in findings
    ]
    return np.concatenate(ranges) if ranges else np.arange(0)


def _as_error(findings: Sequence[Finding]) -> UserError:
    kind = getattr(zoo.errors, findings[0].kind, DataFileError)
    more = len(findings) - _SHOWN
    texts = [finding.text for finding in findings[:_SHOWN]]
    return kind("\n".join(texts) + (f"\nand {more} more" if more > 0 else ""))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit status 1 if anything is wrong."""
    from zoo.progress import progress

    options = _parser().parse_args(arguments)
    with user_errors():
        manifest = _manifest(options)
        n_files = len(manifest.files)
        checked = progress(verify(options.folder, manifest, options.level), n_files, "Verifying")
        findings = [finding for of_file in checked for finding in of_file]
        for finding in findings:
            print(f"{finding.kind}: {finding.text}")
        print(
            f"{options.folder}: {n_files} files, {manifest.n_samples} samples, "
            f"{manifest.nbytes / 1e9:.3f} GB, level {options.level}: {len(findings)} bad"
        )
        if findings:
            raise SystemExit(1)
        if options.write:
            _write(options.folder, manifest)


def _manifest(options: argparse.Namespace) -> Manifest:
    from zoo.data.manifest import index_files, matching

    if not options.write or (options.folder / MANIFEST_NAME).exists():
        return read_manifest(options.folder)
    names = matching(options.folder, options.files)
    if not names:
        raise EmptySplitError(
            f"no file in {options.folder} matches {options.files}. Next, give --files PATTERN."
        )
    return index_files(options.folder, names, _schema_of(options.folder / names[0]))


def _schema_of(path: Path) -> Schema:
    """All datasets of a file as fields of one sample each."""
    with h5py.File(path, "r", locking=False) as file:
        fields: dict[str, Field] = {}

        def add(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                fields[name.replace("/", ".")] = Field(name, item.shape, str(item.dtype))

        file.visititems(add)
    return fields


def _write(folder: Path, manifest: Manifest) -> None:
    entries = tuple(
        dataclasses.replace(entry, sha256=entry.sha256 or sha256_of(folder / entry.path))
        for entry in manifest.files
    )
    dataclasses.replace(manifest, files=entries).save(folder / MANIFEST_NAME)
    print(f"wrote {folder / MANIFEST_NAME}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.data.verify",
        description="Check HDF5 files against the manifest beside them: there, whole, of the right "
        "shapes and types, no NaN, labels in range, checksums. Status 1 if any is bad.",
    )
    parser.add_argument("folder", type=Path, help="the folder that holds manifest.json")
    parser.add_argument("--level", choices=LEVELS[1:], default="full", help="default: full")
    parser.add_argument(
        "--write",
        action="store_true",
        help="make manifest.json where there is none (one sample a file), and add checksums",
    )
    parser.add_argument(
        "--files", nargs="+", default=["*.h5"], help="with --write: patterns; default: *.h5"
    )
    return parser


if __name__ == "__main__":
    main()
