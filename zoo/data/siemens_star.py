"""How files/siemens_star/siemens_star.h5 was made out of tike's test data.

`python -m zoo.data.siemens_star siemens-star-small.npz.bz2` writes it anew (SOURCE.txt beside it
says where the archive is). Counts are kept as they are, as 16-bit whole numbers; their zero
frequency moves from the corner to the middle, and positions are shifted so that the smallest are 0.
"""

from __future__ import annotations

import bz2
import io
import sys
from pathlib import Path

import numpy as np

from zoo.data.ptychography_file import write_scan

PATH = Path(__file__).parent / "files" / "siemens_star" / "siemens_star.h5"


def convert(archive: Path, path: Path) -> None:
    arrays = np.load(io.BytesIO(bz2.decompress(archive.read_bytes())))
    counts, positions = arrays["data"][0], arrays["scan"][0]
    if not np.array_equal(counts, counts.astype(np.uint16)):
        raise SystemExit(f"{archive}: expected whole numbers below 65536 as counts")
    write_scan(
        path,
        np.fft.fftshift(counts, axes=(1, 2)),
        arrays["probe"].reshape(counts.shape[1:]),
        positions - positions.min(axis=0),
        licence="BSD-3-style, UChicago Argonne LLC; see LICENSE beside this file",
        source="github.com/AdvancedPhotonSource/tike, tests/data/siemens-star-small.npz.bz2",
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), PATH)
