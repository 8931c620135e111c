"""Arrange many images on a grid as one array of pixels.

Each pixel of an image becomes a square of whole pixels of the mosaic, so that every image and every
gap has exactly the same size; only a grid too large for a picture is averaged down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Mosaic", "check_images", "mosaic", "value_limits"]

NOT_A_NUMBER = (0xE7, 0x00, 0x8A, 0xFF)  # a pink that neither grey images nor photographs contain
MAX_CELL, MAX_WIDTH, MAX_GRID = 96, 1100, 2400  # pixels: wished for a cell, for a row; the limit


@dataclass(frozen=True)
class Mosaic:
    """A grid of images as an array of pixels.

    Attributes:
        pixels: RGBA bytes ``[height, width, 4]``; gaps and empty cells are transparent.
        num_rows: The number of rows.
        num_columns: The number of columns.
        cell: The height and width of an image, in pixels of the mosaic.
        gap: The space between images, in pixels of the mosaic.
    """

    pixels: np.ndarray
    num_rows: int
    num_columns: int
    cell: tuple[int, int]
    gap: int

    def row_centre(self, row: int) -> float:
        """Return the middle of a row, in pixels from the top."""
        return row * (self.cell[0] + self.gap) + self.cell[0] / 2

    def column_centre(self, column: int) -> float:
        """Return the middle of a column, in pixels from the left."""
        return column * (self.cell[1] + self.gap) + self.cell[1] / 2


def mosaic(
    images: Tensor, *, columns: int | None, limits: tuple[float, float] | None, gap: int
) -> Mosaic:
    """Lay out images ``[N, C, H, W]`` in rows of ``columns``, or ``[R, K, C, H, W]`` as they are.

    Args:
        images: The images, grey (C = 1), RGB (3) or RGBA (4).
        columns: The images in a row; by default as many as there are rows.
        limits: The values drawn as black and as full brightness; values beyond are clipped. By
            default the smallest and the largest finite value. NaN is pink.
        gap: The space between images, in pixels of the mosaic.

    Raises:
        ValueError: If the shape is not one of images, or the limits or columns leave no room.
    """
    check_images(images)
    columns = columns or (images.shape[1] if images.dim() == 5 else _square(len(images)))
    if columns < 1:
        raise ValueError(f"a grid of {columns} columns has no room for images; give at least 1")
    cells = images.detach().cpu().double().flatten(0, -4)
    pixels = _to_rgba(_shrunk(cells, columns), limits or value_limits(images))
    height, width = pixels.shape[1:3]
    zoom = max(1, min(MAX_CELL // max(height, width), MAX_WIDTH // (columns * width)))
    grid = _wrap(pixels.repeat(zoom, axis=1).repeat(zoom, axis=2), columns)
    return Mosaic(_join(grid, gap), len(grid), columns, (height * zoom, width * zoom), gap)


def check_images(images: Tensor) -> None:
    """Check that ``images`` has the shape ``[N, C, H, W]`` or ``[R, K, C, H, W]``.

    Raises:
        ValueError: If it has not, if C is not 1, 3 or 4, or if there is no image.
    """
    shape = tuple(images.shape)
    if images.dim() not in (4, 5):
        raise ValueError(
            f"images of shape {shape} cannot be drawn: expected (number, channels, height, width) "
            "or (rows, columns, channels, height, width); for other data use rows()"
        )
    if shape[-3] not in (1, 3, 4):
        raise ValueError(
            f"images of shape {shape} have {shape[-3]} channels: only 1 (grey), 3 (RGB) and "
            "4 (RGBA) can be drawn; select channels first, and put them before height and width"
        )
    if not images.numel():
        raise ValueError(f"there is nothing to draw in images of shape {shape}; give at least one")


def value_limits(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest finite value, made distinct where they are equal."""
    finite = values.detach().cpu().double()
    finite = finite[finite.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
    return (low, high) if high > low else (low, low + max(1.0, abs(low)))


def _square(number: int) -> int:
    return math.ceil(math.sqrt(number))


def _shrunk(images: Tensor, columns: int) -> Tensor:
    height, width = images.shape[-2:]
    num_rows = math.ceil(len(images) / columns)
    block = math.ceil(max(num_rows * height, columns * width) / MAX_GRID)
    block = min(block, height, width)
    return images if block == 1 else torch.nn.functional.avg_pool2d(images, block)


def _to_rgba(images: Tensor, limits: tuple[float, float]) -> np.ndarray:
    """Turn ``[N, C, H, W]`` into bytes ``[N, H, W, 4]``."""
    low, high = limits
    if not high > low:
        raise ValueError(f"limits {limits} leave no room for colours; give (low, high)")
    values = images.movedim(-3, -1)
    if values.shape[-1] == 1:
        values = values.expand(*values.shape[:-1], 3)
    scaled = ((values - low) / (high - low)).clamp(0, 1).mul(255).round()
    pixels = np.full((*scaled.shape[:-1], 4), 255, dtype=np.uint8)
    pixels[..., : scaled.shape[-1]] = scaled.nan_to_num().byte().numpy()
    pixels[scaled.isnan().any(-1).numpy()] = NOT_A_NUMBER
    return pixels


def _wrap(cells: np.ndarray, columns: int) -> np.ndarray:
    empty = np.zeros((-len(cells) % columns, *cells.shape[1:]), dtype=np.uint8)
    return np.concatenate([cells, empty]).reshape(-1, columns, *cells.shape[1:])


def _join(grid: np.ndarray, gap: int) -> np.ndarray:
    """Put cells ``[R, K, H, W, 4]`` side by side, with gaps between but not around them."""
    padded = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    num_rows, columns, height, width, _ = padded.shape
    flat = padded.swapaxes(1, 2).reshape(num_rows * height, columns * width, 4)
    return flat[: num_rows * height - gap, : columns * width - gap]
