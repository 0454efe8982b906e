"""Checkpoint files: written for good, checked whole, and read without running anything in them.

[Note: the checksum] ``torch.save`` writes a zip archive whose members are stored as they are, each
with its CRC-32. torch does not look at these when it loads; here they are compared, so that any
checkpoint can be verified, whoever wrote it.

[Note: sizes] What a file claims is checked before memory is given for it: members are not
compressed and together no larger than the file; tensors are mapped, not read, and one whose shape
claims more bytes than the file has is refused before it is copied.
"""

from __future__ import annotations

import copy
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gradsched.errors import CheckpointError
from lightning_gradsched.files import written_for_good

# Checked in pieces of so many bytes.
_PIECE_NBYTES = 1 << 20


def write(path: Path, content: Any, *, keep: int = 1) -> None:
    """Write ``content`` to ``path`` for good; of the files that had its name, keep ``keep - 1``.

    The one before ``path`` is called as ``previous(path, 1)``, and so on. Raises ``OSError`` (a
    full disk), or what torch raises for what cannot be saved; ``path`` then stays as it was.
    """
    with written_for_good(path) as file:
        _save(content, file)
        file.flush()
        _shift(path, keep)


def previous(path: Path, age: int) -> Path:
    """What the file is called that had the name ``path`` so many saves ago.

    >>> previous(Path("run/last.ckpt"), 1).as_posix()
    'run/last.before1.ckpt'
    """
    return path.with_name(f"{path.stem}.before{age}{path.suffix}") if age else path


def fault_of(path: Path) -> str:
    """What is wrong with the file, or an empty string: it is whole, bit for bit as written."""
    try:
        nbytes = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "it holds compressed members, which torch.save never writes"
            if sum(member.file_size for member in members) > nbytes:
                return f"its members claim more than its {nbytes} bytes"
            for member in members:
                with archive.open(member) as stream:
                    while stream.read(_PIECE_NBYTES):
                        pass
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        return f"{path.stat().st_size} bytes, {error}" if path.exists() else str(error)
    return ""


def read(path: Path) -> dict[str, Any]:
    """The checkpoint, on the CPU and in memory of its own; nothing in it is run.

    Raises:
        CheckpointError: it is damaged, it claims more than it has, or it would have to run code.
    """
    fault = fault_of(path)
    if fault:
        raise CheckpointError(f"{path} cannot be read: {fault}. Use another checkpoint of the run.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is whole, but holds more than tensors and plain values, or none of them:"
            f" {str(error).splitlines()[0]}. Nothing in a checkpoint is run: keep such objects out"
            " of it (save_hyperparameters(ignore=...)), or, where you trust the file, name their"
            " class to torch.serialization.add_safe_globals first."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict, got {type(content).__name__}")
    limit_nbytes = path.stat().st_size
    return dict(in_memory(content, lambda tensor: _check_size(path, tensor, limit_nbytes)))


def in_memory(content: Any, check: Callable[[Tensor], None] = lambda tensor: None) -> Any:
    """``content`` with each tensor copied to host memory; tensors that shared it share it still."""
    copies: dict[Any, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            check(value)
            key = _place(value)
            if key not in copies:
                copies[key] = value.detach().to("cpu", copy=True)
            return copies[key]
        if isinstance(value, dict):
            fresh = copy.copy(value)  # of its class, and with what a state_dict has besides keys
            fresh.update((key, walk(item)) for key, item in value.items())
            return fresh
        if isinstance(value, (list, tuple)):
            items = [walk(item) for item in value]
            is_named = hasattr(value, "_fields")
            return type(value)(*items) if is_named else type(value)(items)
        return value

    return walk(content)


def _place(tensor: Tensor) -> Any:
    """Equal for tensors that are the same numbers in the same memory."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return id(tensor)
    shape, stride = tuple(tensor.shape), tensor.stride()
    return tensor.device, tensor.data_ptr(), tensor.dtype, shape, stride, type(tensor)


def _check_size(path: Path, tensor: Tensor, limit_nbytes: int) -> None:
    nbytes = tensor.numel() * tensor.element_size()
    if tensor.layout == torch.strided and nbytes > limit_nbytes:
        raise CheckpointError(
            f"{path} of {limit_nbytes} bytes claims a tensor of shape {list(tensor.shape)}, which"
            f" is {nbytes} bytes: it is damaged or was made to do harm"
        )


def _save(content: Any, file: Any) -> None:
    """``torch.save`` with checksums, whatever the user has set; an error of the file's is its own.

    torch tells of a full disk by a RuntimeError about the archive, with the disk's as its context.
    """
    writer: Any = _Writer(file)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(content, writer)
    finally:
        torch.serialization.set_crc32_options(before)
        if writer.error is not None:
            raise writer.error


class _Writer:
    """Keeps the first error of ``write``: past it, nothing more is written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return int(self._file.write(data))
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            self._file.flush()


def _shift(path: Path, keep: int) -> None:
    """Give what has the name ``path`` its next older name, by a second link: it is never gone."""
    for age in range(keep - 1, 0, -1):
        newer, older = previous(path, age - 1), previous(path, age)
        if newer.is_symlink() or not newer.exists():
            continue
        fresh = older.with_name(f".{older.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        try:
            os.link(newer, fresh)
        except OSError:  # no hard links here: nothing older is kept
            return
        os.replace(fresh, older)
