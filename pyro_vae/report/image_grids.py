"""Images as the cells of a figure, shown one to one as ``mosaic`` lays them out.

Gaps are even, and what is seen is what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.report.mosaic import Mosaic, mosaic, value_limits

__all__ = [
    "DPI",
    "INK",
    "LINE",
    "SOFT",
    "image_grid",
    "interpolation",
    "manifold",
    "reconstructions",
    "traversal",
]

DPI = 128  # a power of two, so that whole pixels stay whole when they pass through inches
INK, SOFT, LINE = "#1f2430", "#5f6673", "#d9dce2"


def image_grid(
    images: Tensor,
    *,
    title: str,
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    gap: int = 4,
) -> Figure:
    """Draw images on a tight, even grid, grey, RGB or RGBA by their number of channels.

    Args:
        images: ``[N, C, H, W]``, laid out in rows of ``columns``, or ``[R, K, C, H, W]``, as is.
        title: One line above the grid.
        columns: The images in a row; by default as many as there are rows.
        row_labels: One for each row, or none.
        column_labels: One for each column, or none.
        limits: The values drawn as black and as full brightness, in the unit of the data; values
            beyond are clipped. By default the smallest and the largest finite value. NaN is pink.
        gap: The space between images, in pixels of the picture.

    Raises:
        ValueError: If the shape is not one of images, or the labels do not fit the grid.
    """
    grid = mosaic(images, columns=columns, limits=limits, gap=gap)
    _check_labels("row_labels", row_labels, grid.num_rows)
    _check_labels("column_labels", column_labels, grid.num_columns)
    return _draw_grid(grid, title, row_labels, column_labels)


def reconstructions(
    x: Tensor,
    mean: Tensor,
    sample: Tensor,
    *,
    title: str = "Reconstructions of test data",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw three rows: the data, their mean reconstruction and a sampled one.

    Args:
        x: The data, ``[N, C, H, W]``.
        mean: The mean of the likelihood at the posterior mean, ``[N, C, H, W]``.
        sample: A draw from the likelihood at a draw from the posterior, ``[N, C, H, W]``.
        title: One line above the grid.
        limits: As in ``image_grid``; by default those of the data, in all three rows.

    Raises:
        ValueError: If the shapes differ or are not those of images.
    """
    if not x.shape == mean.shape == sample.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (x, mean, sample))
        raise ValueError(f"data, mean and sample have different shapes: {shapes}; give equal ones")
    images = torch.stack([part.detach().cpu().float() for part in (x, mean, sample)])
    labels = ("data", "mean", "sample")
    return image_grid(images, title=title, row_labels=labels, limits=limits or value_limits(x))


def interpolation(
    images: Tensor,
    *,
    title: str = "Interpolation between two data, in latent space",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw a row for each pair of data, ``[P, K, C, H, W]``, from the first to the second."""
    num_steps = images.shape[1] if images.dim() == 5 else 0
    labels = ["from", *[""] * (num_steps - 2), "to"] if num_steps > 1 else []
    return image_grid(images, title=title, column_labels=labels, limits=limits)


def traversal(
    images: Tensor,
    unit_labels: Sequence[str] = (),
    *,
    values: Sequence[float] = (),
    title: str = "Traversal: one latent unit moves, the others stay",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw a row for each latent unit, ``[U, K, C, H, W]``, while its value moves along the row.

    Args:
        images: The decoded images.
        unit_labels: The name of each unit.
        values: The value of the unit in each column.
        title: One line above the grid.
        limits: As in ``image_grid``.

    Raises:
        ValueError: If the shape is not one of images, or the labels do not fit the grid.
    """
    numbers = [f"{value:+.2g}" for value in values]
    return image_grid(
        images, title=title, row_labels=unit_labels, column_labels=numbers, limits=limits
    )


def manifold(
    images: Tensor,
    *,
    title: str = "The latent plane, decoded at the quantiles of the prior",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw the decoded plane, ``[K, K, C, H, W]`` (rows, columns), without gaps.

    Reference: Diederik P. Kingma, Max Welling, "Auto-Encoding Variational Bayes" (2014), app. A.
    """
    return image_grid(images, title=title, limits=limits, gap=0)


def _check_labels(name: str, labels: Sequence[str], number: int) -> None:
    if len(labels) not in (0, number):
        raise ValueError(f"{len(labels)} {name} for {number} of them in the grid; give {number}")


def _draw_grid(
    grid: Mosaic, title: str, row_labels: Sequence[str], column_labels: Sequence[str]
) -> Figure:
    """Place everything in pixels, so that the mosaic is shown one to one."""
    height, width, _ = grid.pixels.shape
    edge = 24
    left = edge + max((_text_width(label, 10) + 12 for label in row_labels), default=0)
    top, bottom = edge + 34, edge + (22 if column_labels else 0)
    whole_width = max(left + width, edge + _text_width(title, 12)) + edge
    whole_height = top + height + bottom
    figure = Figure((whole_width / DPI, whole_height / DPI), dpi=DPI, facecolor="white")
    place = (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    axes.imshow(grid.pixels, interpolation="nearest", aspect="auto")

    def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
        position = (x / whole_width, 1 - y / whole_height)
        figure.text(*position, text, fontsize=size, parse_math=False, **style)

    write(edge, edge, title, 12, color=INK, va="top", weight="bold")
    for n, label in enumerate(row_labels):
        write(left - 12, top + grid.row_centre(n), label, 10, color=SOFT, va="center", ha="right")
    for n, label in enumerate(column_labels):
        middle = left + grid.column_centre(n)
        write(middle, top + height + 8, label, 9, color=SOFT, va="top", ha="center")
    return figure


def _text_width(text: str, size: float) -> int:
    """Return about as many pixels as the text needs; measuring exactly would need a renderer."""
    return math.ceil(0.68 * len(text) * size * DPI / 72)
