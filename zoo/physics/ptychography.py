"""Far-field ptychography: a probe scanned over an object, the diffraction of each patch recorded.

pattern_p(k) = |F[ probe(r) object(r + r_p) ](k)|^2 with a unitary F (Rodenburg and Faulkner, Appl.
Phys. Lett. 85, 4795 (2004)). Lengths are in pixels of the object, which are as large as those of
the probe; patterns have their centre at [d / 2, d / 2].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import PhysicsError
from zoo.physics.operator import Space


def take_patches(images: Tensor, corners: Tensor, side_px: int) -> Tensor:
    """Square patches of images, [N, P, side_px, side_px].

    Args:
        images: [N, H, W].
        corners: row and column of each patch's first pixel, int64, inside; [P, 2], the same for all
            images, or [N, P, 2].
    """
    return images.flatten()[_flat_index(images.shape, corners, side_px)]


def add_patches(patches: Tensor, corners: Tensor, shape: tuple[int, int]) -> Tensor:
    """The adjoint of `take_patches`: [N, P, d, d] summed where they overlap, [N, *shape]."""
    full = (len(patches), *shape)
    index = _flat_index(full, corners, patches.shape[-1]).expand(patches.shape)
    flat = patches.new_zeros(math.prod(full))
    return flat.index_add(0, index.flatten(), patches.flatten()).view(full)


def _flat_index(shape: tuple[int, ...], corners: Tensor, side_px: int) -> Tensor:
    n, height_px, width_px = shape
    offset = torch.arange(side_px, device=corners.device)
    rows = corners[..., 0, None] + offset
    cols = corners[..., 1, None] + offset
    first = torch.arange(n, device=corners.device)[:, None, None, None] * (height_px * width_px)
    return first + rows[..., :, None] * width_px + cols[..., None, :]


def split_positions(positions_px: Tensor) -> tuple[Tensor, Tensor]:
    """Whole pixels, int64, and what is left, in [-0.5, 0.5); both of `positions_px`'s shape."""
    corners = (positions_px + 0.5).floor()
    return corners.long(), positions_px - corners


def shifted(wave: Tensor, shift_px: Tensor) -> Tensor:
    """A wave [d, d] moved by fractions of a pixel [..., 2] in Fourier space, [..., d, d]."""
    k = torch.fft.fftfreq(wave.shape[-1], dtype=shift_px.dtype, device=shift_px.device)
    phase = (
        -2.0
        * math.pi
        * (shift_px[..., 0, None, None] * k[:, None] + shift_px[..., 1, None, None] * k)
    )
    ramp = torch.complex(phase.cos(), phase.sin())
    return torch.fft.ifft2(torch.fft.fft2(wave) * ramp)


def far_field(exit_waves: Tensor) -> Tensor:
    """Unitary Fourier transform over the last two dimensions, its centre in the middle."""
    return torch.fft.fftshift(torch.fft.fft2(exit_waves, norm="ortho"), dim=(-2, -1))


def near_field(far: Tensor) -> Tensor:
    """The inverse, and adjoint, of `far_field`."""
    return torch.fft.ifft2(torch.fft.ifftshift(far, dim=(-2, -1)), norm="ortho")


def diffract(image: Tensor, probe: Tensor, corners: Tensor, fractions: Tensor) -> Tensor:
    """Intensities [N, P, d, d] behind images [N, H, W], differentiable in image and probe.

    `Diffraction` for a probe or positions that change; nothing is checked.

    Args:
        corners, fractions: of `split_positions`; [P, 2], or [N, P, 2] for a scan of each image.
    """
    patches = take_patches(image, corners, probe.shape[-1])
    return intensity(far_field(shifted(probe, fractions) * patches))


def intensity(wave: Tensor) -> Tensor:
    """|wave|^2, smooth at zero."""
    return wave.real.square() + wave.imag.square()


class FarField(nn.Module):
    """Object [N, H, W] -> wave on the detector [N, P, d, d], both complex; linear.

    Args:
        probe: [d, d] complex.
        positions_px: [P, 2], row and column of the probe's first pixel on the object; fractions of
            a pixel move the probe, in Fourier space.
        object_shape: (H, W).

    Raises:
        PhysicsError: the probe is not square and complex, the positions are not [P, 2], or one
            takes the probe outside the object.
    """

    is_linear = True

    def __init__(self, probe: Tensor, positions_px: Tensor, object_shape: tuple[int, int]) -> None:
        super().__init__()
        require_probe(probe)
        require_positions(positions_px, probe.shape[-1], object_shape)
        corners, fractions = split_positions(positions_px)
        self.domain = Space(object_shape, is_complex=True)
        self.codomain = Space((len(positions_px), *probe.shape), is_complex=True)
        self.register_buffer("corners", corners, persistent=False)
        self.register_buffer("probes", shifted(probe, fractions), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        self.domain.require("object", image)
        return far_field(self.probes * take_patches(image, self.corners, self.probes.shape[-1]))

    def adjoint(self, far: Tensor) -> Tensor:
        self.codomain.require("far", far)
        waves = self.probes.conj() * near_field(far)
        return add_patches(waves, self.corners, self.domain.shape)


class Diffraction(nn.Module):
    """Object [N, H, W] complex -> intensities [N, P, d, d]: what a counting detector expects.

    Arguments and errors are those of `FarField`.
    """

    is_linear = False

    def __init__(self, probe: Tensor, positions_px: Tensor, object_shape: tuple[int, int]) -> None:
        super().__init__()
        self.far_field = FarField(probe, positions_px, object_shape)
        self.domain = self.far_field.domain
        self.codomain = Space(self.far_field.codomain.shape)

    def forward(self, image: Tensor) -> Tensor:
        return intensity(self.far_field(image))


def require_probe(probe: Tensor) -> None:
    """Raise PhysicsError unless `probe` is square and complex."""
    if probe.ndim != 2 or probe.shape[0] != probe.shape[1] or not probe.is_complex():
        raise PhysicsError(
            f"the probe does not fit. Expected a square complex tensor [d, d], got {probe.dtype} "
            f"{list(probe.shape)}. Next, take one mode of it, cropped or padded to a square."
        )


def require_positions(positions_px: Tensor, side_px: int, object_shape: tuple[int, int]) -> None:
    """Raise PhysicsError unless `positions_px` is [P, 2] and the probe stays on the object."""
    if positions_px.ndim != 2 or positions_px.shape[1] != 2:
        raise PhysicsError(
            f"the scan does not fit. Expected positions [P, 2] (row, column), got "
            f"{list(positions_px.shape)}. Next, flatten the scan to a list of positions."
        )
    corners, _ = split_positions(positions_px)
    last = torch.tensor(object_shape, device=corners.device) - side_px
    outside = ((corners < 0) | (corners > last)).any(1) | ~positions_px.isfinite().all(1)
    if outside.any():
        first = int(outside.nonzero()[0])
        row, col = positions_px[first].tolist()
        raise PhysicsError(
            f"{int(outside.sum())} of {len(positions_px)} positions take the probe of {side_px} px "
            f"outside the object; the first is number {first}, at ({row:.1f}, {col:.1f}). Expected "
            f"rows in 0..{int(last[0])} and columns in 0..{int(last[1])} for an object of "
            f"{object_shape[0]} x {object_shape[1]} px. Next, shift the positions or enlarge the "
            "object."
        )


def object_shape_for(positions_px: Tensor, side_px: int) -> tuple[int, int]:
    """The smallest object that holds the probe at all positions, which are not negative."""
    corners, _ = split_positions(positions_px)
    height_px, width_px = (corners.amax(0) + side_px).tolist()
    return height_px, width_px
