"""Smooth random fields on the globe that move with the time of day, and finer grids for them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft
from scipy.interpolate import CubicSpline

COARSE = (96, 144)
"""Large scales are made on this grid, whatever the size of the snapshot."""


@lru_cache(maxsize=8)
def _amplitude(wavelength_deg: float, slope: float) -> np.ndarray:
    """[2 * H, W // 2 + 1]: of each wave, flat above `wavelength_deg` and falling below it."""
    height, width = COARSE
    # Twice the rows: the field may not be periodic from pole to pole.
    meridional = np.fft.fftfreq(2 * height, 180.0 / (height - 1))[:, None]
    # A degree of longitude counts as at 45 degrees.
    zonal = np.fft.rfftfreq(width, 360.0 / width)[None] * np.sqrt(2.0)
    squared = (np.square(meridional) + np.square(zonal)) * wavelength_deg**2
    amplitude = (1.0 + squared) ** (-slope / 2.0)
    amplitude[0, 0] = 0.0
    return amplitude


@lru_cache(maxsize=1)
def _polar_filter() -> np.ndarray:
    """[H, W // 2 + 1]: short zonal waves fade where meridians meet."""
    height, width = COARSE
    cosine = np.cos(np.radians(np.linspace(-90.0, 90.0, height)))[:, None]
    waves = np.arange(width // 2 + 1)[None]
    return 1.0 / (1.0 + (waves / (2.0 + 60.0 * cosine)) ** 6)


def smooth_spectra(
    rng: np.random.Generator, n_fields: int, wavelength_deg: float, slope: float = 3.0
) -> np.ndarray:
    """[n_fields, H, W // 2 + 1] complex: zonal spectra of fields of mean 0 and deviation 1."""
    height, width = COARSE
    white = rng.standard_normal((n_fields, 2 * height, width))
    spectra = fft.rfft2(white) * _amplitude(wavelength_deg, slope)
    rows = fft.ifft(spectra, axis=1)[:, :height]
    fields = fft.irfft(rows, n=width)
    scale = fields.std(axis=(1, 2), keepdims=True)
    return rows * _polar_filter() / scale


def at_time(
    first: np.ndarray, second: np.ndarray, angle: float, shift_deg: np.ndarray
) -> np.ndarray:
    """[F, H, W]: two spectra turned into each other by `angle`, each row moved to the east.

    Args:
        shift_deg: [H] degrees of longitude.
    """
    width = COARSE[1]
    waves = np.arange(width // 2 + 1)
    phase = np.exp(-1j * np.radians(shift_deg)[:, None] * waves)
    return fft.irfft((np.cos(angle) * first + np.sin(angle) * second) * phase, n=width)


@lru_cache(maxsize=4)
def _refinements(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """[H, h] and [w, W] float32: cubic splines from the coarse grid to another, as matrices."""
    height, width = COARSE
    to, of = np.linspace(-90.0, 90.0, shape[0]), np.linspace(-90.0, 90.0, height)
    rows = CubicSpline(of, np.eye(height))(to)
    closed = np.concatenate([np.eye(width), np.eye(width)[:1]])
    columns = CubicSpline(np.arange(width + 1) * (360.0 / width), closed, bc_type="periodic")
    return (
        rows.astype(np.float32),
        columns(np.arange(shape[1]) * (360.0 / shape[1])).T.astype(np.float32).copy(),
    )


def refine(fields: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[..., h, w] of the coarse grid -> [..., H, W] float32."""
    rows, columns = _refinements(shape)
    return rows @ (fields.astype(np.float32) @ columns)


def fine_noise(rng: np.random.Generator, shape: tuple[int, int], slope: float = 1.6) -> np.ndarray:
    """[H, W] float32 of deviation 1: only waves that the coarse grid has not; zeros where none."""
    height, width = shape
    meridional = np.fft.fftfreq(height, 1.0 / height)[:, None].astype(np.float32)
    zonal = np.fft.rfftfreq(width, 1.0 / width)[None].astype(np.float32)
    is_new = (np.abs(meridional) > COARSE[0] / 2) | (zonal > COARSE[1] / 2)
    squared = np.square(meridional / COARSE[0]) + np.square(zonal / COARSE[1])
    with np.errstate(divide="ignore"):
        amplitude = np.where(is_new, squared ** np.float32(-slope / 2.0), 0.0)
    if not amplitude.any():
        return np.zeros(shape, dtype=np.float32)
    white = rng.standard_normal(shape, dtype=np.float32)
    field = fft.irfft2(fft.rfft2(white) * amplitude.astype(np.float32), s=shape)
    return field / field.std()
