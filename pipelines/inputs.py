"""What callers may pass to a pipeline: images and masks of the usual kinds, counts, codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.data.image_files import to_array
from latent_prior.data.images import to_float

ImageInput = Tensor | NDArray[Any] | Image.Image | Sequence[Tensor | NDArray[Any] | Image.Image]
"""Images, as torchvision and diffusers have them:

- tensors (B, C, H, W) or (C, H, W), uint8 or float in [-1, 1];
- arrays (B, H, W, C), (H, W, C) or (H, W), uint8 or float in [0, 1];
- PIL images of any mode;
- a sequence of these.
"""
MaskInput = Tensor | NDArray[np.bool_] | Image.Image
"""bool (H, W) or (B, H, W), True where a pixel is hidden; or a PIL image, white where hidden."""
SLACK = 1e-3
"""Images may leave their range by this much, from rounding in other libraries."""


def as_images(images: ImageInput, spec: CodeSpec) -> Tensor:
    """Images of the size and channels of `spec`, float32 (B, C, H, W) in [-1, 1].

    Raises:
        ValueError: naming the kind, shape or values that are expected and found.
    """
    batch = as_batch(images, spec)
    check_values(batch)
    return batch


def as_batch(images: ImageInput, spec: CodeSpec) -> Tensor:
    """As `as_images`, but the values of float tensors are not checked.

    Raises:
        ValueError: naming the kind or shape that is expected and found.
    """
    if isinstance(images, list | tuple):
        parts = [as_batch(image, spec) for image in images]
        return torch.cat(parts) if parts else torch.empty(0, *_shape(spec))
    if isinstance(images, Image.Image):
        images = to_array(ImageOps.exif_transpose(images), 1 if spec.image_channels == 1 else 3)
    if isinstance(images, np.ndarray):
        batch = _from_array(images, spec.image_channels)
    elif isinstance(images, Tensor):
        batch = images[None] if images.ndim == 3 else images
    else:
        raise ValueError(
            f"images must be tensors, arrays or PIL images, not {type(images).__name__}"
        )
    if tuple(batch.shape[1:]) != _shape(spec):
        expected = ", ".join(map(str, _shape(spec)))
        raise ValueError(
            f"this autoencoder takes images of shape (B, {expected}), found {tuple(batch.shape)}: "
            "resize or convert them"
        )
    if batch.dtype == torch.uint8:
        return to_float(batch)
    if not batch.is_floating_point():
        raise ValueError(f"images must be uint8 or floats, not {batch.dtype}")
    return batch.float()


def check_values(images: Tensor) -> None:
    """Check that float images lie in [-1, 1].

    Raises:
        ValueError: naming the range that is found.
    """
    low, high = images.aminmax() if images.numel() else (torch.zeros(()), torch.zeros(()))
    if not -1 - SLACK <= float(low) <= float(high) <= 1 + SLACK:
        raise ValueError(
            f"float images must lie in [-1, 1], not in [{low:g}, {high:g}]; give 0 to 255 as uint8"
        )


def as_mask(mask: MaskInput) -> Tensor:
    """A mask as a tensor; its type and shape are checked by `completion.one_mask_each`."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) >= 128
    try:
        return torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the mask must be a bool tensor or array or a PIL image, not {type(mask).__name__}"
        ) from error


def as_whole(value: Any, name: str) -> int:
    """A whole number, numpy's included.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)


def as_count(value: Any, name: str, smallest: int = 1) -> int:
    """A whole number of at least `smallest`.

    Raises:
        ValueError: it is none.
    """
    if as_whole(value, name) < smallest:
        raise ValueError(f"{name} must be at least {smallest}, not {value}")
    return int(value)


def as_codes(codes: Mapping[str, Any], spec: CodeSpec) -> CodeMaps:
    """Codes as int64 or latents as float32, by level.

    Raises:
        ValueError: a level is missing or unknown, or a shape, type or value does not fit.
    """
    maps: CodeMaps = {}
    for level in spec.levels:
        values = as_tensor(codes.get(level.name, ()), f"{spec.kind} {level.name!r}")
        if tuple(values.shape[1:]) != level.shape or values.ndim != 1 + len(level.shape):
            found = tuple(values.shape) if level.name in codes else None
            expected = ", ".join(map(str, ("B", *level.shape)))
            raise ValueError(f"{spec.kind} {level.name!r}: expected ({expected}), found {found}")
        if level.vocabulary is None:
            check_finite(values, f"{spec.kind} {level.name!r}")
            maps[level.name] = values.float()
            continue
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"codes {level.name!r} must be integers, not {values.dtype}")
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < level.vocabulary:
            raise ValueError(f"codes {level.name!r}: values must lie in [0, {level.vocabulary})")
        maps[level.name] = values.long()
    unknown = [name for name in codes if name not in {level.name for level in spec.levels}]
    if unknown:
        known = ", ".join(level.name for level in spec.levels)
        raise ValueError(f"there is no level {unknown[0]!r} of {spec.kind}; there are: {known}")
    check_same_count(maps)
    return maps


def as_vectors(vectors: Any, shapes: Mapping[str, Sequence[int]]) -> CodeMaps:
    """Vectors as float32, by level; `shapes` are those of one image.

    Raises:
        ValueError: a level is missing or unknown, a shape does not fit, or a value is not finite.
    """
    if not isinstance(vectors, Mapping) or set(vectors) != set(shapes):
        found = list(vectors) if isinstance(vectors, Mapping) else type(vectors).__name__
        raise ValueError(f"vectors must have the levels {list(shapes)}, not {found}")
    maps = {name: as_tensor(vectors[name], f"vectors {name!r}").float() for name in shapes}
    for name, values in maps.items():
        if tuple(values.shape[1:]) != tuple(shapes[name]):
            expected = ", ".join(map(str, ("B", *shapes[name])))
            raise ValueError(
                f"vectors {name!r}: expected ({expected}), found {tuple(values.shape)}"
            )
        check_finite(values, f"vectors {name!r}")
    check_same_count(maps)
    return maps


def as_tensor(values: Any, what: str) -> Tensor:
    """A tensor of numbers from a tensor, an array or nested lists.

    Raises:
        ValueError: it is none of these.
    """
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{what} must be a tensor of numbers ({error})") from error


def check_finite(values: Tensor, what: str) -> None:
    """Raise a ValueError if values are NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise ValueError(f"{what}: some values are not finite")


def check_same_count(maps: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if levels, or groups of images, have different numbers of rows."""
    counts = {name: len(values) for name, values in maps.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"the numbers of images must be equal, not {listed}")


def _shape(spec: CodeSpec) -> tuple[int, int, int]:
    return spec.image_channels, spec.image_size, spec.image_size


def _from_array(array: NDArray[Any], channels: int) -> Tensor:
    """uint8, or floats in [0, 1], to a tensor (B, C, H, W), the latter in [-1, 1]."""
    if array.ndim == 2 or (array.ndim == 3 and channels == 1 and array.shape[-1] != 1):
        array = array[..., None]  # grey without a channel axis
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise ValueError(
            f"image arrays must be (B, H, W, C), uint8 or float, not {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "f":
        if (array < -SLACK).any() or (array > 1 + SLACK).any():
            raise ValueError(
                f"float arrays must lie in [0, 1], not in [{array.min():g}, {array.max():g}]; "
                "give 0 to 255 as uint8, and [-1, 1] as a tensor (B, C, H, W)"
            )
        array = array.astype(np.float32) * 2 - 1
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
