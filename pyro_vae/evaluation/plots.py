"""Pictures: tensors and records in, a matplotlib figure out; no model, no global state.

Figures are made directly, never through pyplot, so no backend is switched and nothing stays open.
Images are shown one to one as ``mosaic`` lays them out: gaps are even, and what is seen is what
was computed. The colours can be told apart with the common colour-vision deficiencies: Paul Tol,
"Colour Schemes", SRON technical note (2021).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vae.evaluation.mosaic import Mosaic, mosaic, value_limits
from pyro_vae.files import replace_file

__all__ = [
    "curves",
    "image_grid",
    "interpolation",
    "latent_scatter",
    "manifold",
    "png",
    "reconstructions",
    "rows",
    "save",
    "traversal",
    "unit_bars",
]

DPI = 128  # a power of two, so that whole pixels stay whole when they pass through inches
INK, SOFT, LINE = "#1f2430", "#5f6673", "#d9dce2"
BLUE, ORANGE, PURPLE, GREY = "#4477aa", "#ee7733", "#aa3377", "#a9aeb8"
CLASSES = (
    *("#332288", "#ddaa33", "#cc6677", "#117733", "#88ccee"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#5f6673"),
)
HALO = withStroke(linewidth=3, foreground="white")
MAX_CLASSES = 2 * len(CLASSES)  # each colour once as a circle, once as a triangle
MAX_BARS = 200
HISTORY_KEYS = (
    *("train_nats", "validation_elbo_nats", "validation_rate_nats"),
    *("validation_distortion_nats", "learning_rate"),
)

Line = tuple[str, np.ndarray, str]  # name, values, colour
Panel = tuple[str, str, list[Line]]  # title, unit, lines


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file, which appears complete or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    replace_file(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file, at the figure's own resolution."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


# Training curves -------------------------------------------------------------------------------


def curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what happened over the epochs: the bound, its two terms and the learning rate.

    Args:
        history: One record per epoch with ``epoch``, ``train_nats`` and ``validation_elbo_nats``,
            and optionally ``validation_rate_nats``, ``validation_distortion_nats`` and
            ``learning_rate``. Missing and non-finite values leave a gap. Panels without a value
            are left out; the learning rate has one only if it varies.
    """
    epochs = _series(history, "epoch")
    epochs = np.where(np.isfinite(epochs), epochs, np.arange(len(epochs)))
    train, validation, rate, distortion, learning_rate = (
        _series(history, key) for key in HISTORY_KEYS
    )
    bound = [("training", train, GREY), ("validation", validation, BLUE)]
    panels: list[Panel] = [("Evidence lower bound", "ELBO (nats per datum)", bound)]
    if np.isfinite([rate, distortion]).any():
        terms = [("rate", rate, ORANGE), ("distortion", distortion, PURPLE)]
        panels.append(("Its two terms, on validation data", "nats per datum", terms))
    if len(np.unique(learning_rate[np.isfinite(learning_rate)])) > 1:
        panels.append(("Learning rate", "step size of the optimiser", [("", learning_rate, SOFT)]))
    figure = _figure(1.0 + 4.4 * len(panels), 3.8)
    for n, (title, unit, lines) in enumerate(panels):
        axes = _panel(figure, (1, len(panels), n + 1), title, "epoch", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _draw_lines(axes, epochs, lines)
    _focus(figure.axes[0], np.stack([train, validation]))
    return figure


def _series(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    numbers = [record.get(key) for record in history]
    values = np.array([math.nan if number is None else float(number) for number in numbers])
    return np.where(np.isfinite(values), values, math.nan)


def _draw_lines(axes: Axes, epochs: np.ndarray, lines: list[Line]) -> None:
    # A line through a single point is invisible.
    marker = "o" if len(epochs) <= 12 else ""
    for name, values, colour in lines:
        finite = values[np.isfinite(values)]
        label = f"{name}, last {finite[-1]:,.2f}" if len(finite) else f"{name}, none"
        axes.plot(epochs, values, color=colour, linewidth=2, marker=marker, ms=4, label=label)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    if not any(np.isfinite(values).any() for _, values, _ in lines):
        axes.set(xticks=[], yticks=[])
        _note(axes, "no values recorded")
    elif lines[0][0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _focus(axes: Axes, values: np.ndarray) -> None:
    """Let the first epochs leave the panel where they would flatten all the others."""
    late = values[:, values.shape[1] // 10 :]
    if not np.isfinite(late).any():
        return
    low, high = np.nanmin(late), np.nanmax(values)
    height = high - low
    num_below = int((np.nan_to_num(values, nan=low).min(axis=0) < low - 0.08 * height).sum())
    if num_below and low - np.nanmin(values) > 0.5 * height > 0:
        axes.set_ylim(low - 0.08 * height, high + 0.05 * height)
        what = "first lies" if num_below == 1 else f"first {num_below} lie"
        axes.set_xlabel(f"epoch (the {what} below the panel)")


# Images ----------------------------------------------------------------------------------------


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


# Latents ---------------------------------------------------------------------------------------


def latent_scatter(
    points: Tensor,
    labels: Tensor | None = None,
    *,
    title: str,
    axis_labels: tuple[str, str] = ("", ""),
) -> Figure:
    """Draw points in the plane, one colour and shape per class up to 20 classes.

    Args:
        points: ``[N, 2]``; points that are not finite are left out and counted.
        labels: The class of each point, ``[N]``.
        title: One line above the panel.
        axis_labels: What the two axes are; empty for an embedding, whose axes mean nothing.

    Raises:
        ValueError: If the points are not in a plane or the labels are not one per point.
    """
    if points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"points of shape {tuple(points.shape)} are not in a plane; give (N, 2)")
    if labels is not None and labels.shape != points.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {len(points)} points; give one each")
    finite = points.isfinite().all(1).cpu()
    positions = points.detach().cpu()[finite].double().numpy()
    figure = _figure(6.6, 5.4)
    axes = _panel(figure, (1, 1, 1), title, *axis_labels)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    if not any(axis_labels):
        axes.set(xticks=[], yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
    size = min(24.0, max(3.0, 20_000 / max(len(positions), 1)))
    classes = labels.detach().cpu()[finite] if labels is not None else torch.zeros(len(positions))
    if 1 < len(classes.unique()) <= MAX_CLASSES:
        _draw_classes(axes, positions, classes, size)
    else:
        axes.scatter(positions[:, 0], positions[:, 1], size, BLUE, alpha=0.7, linewidths=0)
    if num_lost := int((~finite).sum()):
        _note(axes, f"{num_lost} not finite, left out", at=(0.02, 0.02))
    return figure


def _draw_classes(axes: Axes, positions: np.ndarray, classes: Tensor, size: float) -> None:
    keys = []
    name: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "color": INK}
    for n, label in enumerate(classes.unique().tolist()):
        colour, marker = CLASSES[n % len(CLASSES)], "o" if n < len(CLASSES) else "^"
        members = (classes == label).numpy()
        x, y = positions[members].T
        axes.scatter(x, y, size, colour, marker=marker, alpha=0.8, linewidths=0)
        axes.text(np.median(x), np.median(y), f"{label:g}", path_effects=[HALO], **name)
        keys.append(Line2D([], [], color=colour, marker=marker, ls="", ms=7, label=f"{label:g}"))
    axes.legend(
        handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5
    )


def unit_bars(
    kl: Tensor,
    activity: Tensor,
    *,
    threshold: float = 0.01,
    title: str = "KL per latent unit",
) -> Figure:
    """Draw the KL of each latent unit in nats, largest first, active units in colour.

    Args:
        kl: The mean KL of each unit, ``[U]``, in nats per datum.
        activity: The variance over data of each unit's posterior mean, ``[U]``.
        threshold: A unit is active when its activity is larger.
        title: The first words above the panel; the counts follow.

    Raises:
        ValueError: If the two are not vectors of one length.

    Reference: Yuri Burda, Roger Grosse, Ruslan Salakhutdinov, "Importance Weighted Autoencoders"
    (2016).
    """
    if kl.dim() != 1 or kl.shape != activity.shape:
        shapes = f"{tuple(kl.shape)} and {tuple(activity.shape)}"
        raise ValueError(f"kl and activity have shapes {shapes}; give one number per unit in each")
    heights = kl.detach().cpu().double().numpy()
    active = (activity.detach().cpu() > threshold).numpy()
    order = np.argsort(-np.nan_to_num(heights, nan=-math.inf), kind="stable")[:MAX_BARS]
    shown = np.where(np.isfinite(heights[order]), heights[order], math.nan)
    colours = [BLUE if active[unit] else GREY for unit in order]
    figure = _figure(9, 3.8)
    total = heights[np.isfinite(heights)].sum()
    heading = f"{title}: {active.sum()} of {len(active)} active, {total:,.2f} nats in all"
    part = f", largest {MAX_BARS} of {len(active)}" if len(active) > MAX_BARS else ""
    axes = _panel(figure, (1, 1, 1), heading, f"unit (sorted by KL{part})", "KL (nats per datum)")
    axes.bar(range(len(order)), shown, color=colours, width=0.8 if len(order) <= 60 else 1.0)
    axes.set_xlim(-0.8, len(order) - 0.2)
    if len(order) <= 50:
        axes.set_xticks(range(len(order)), [str(unit) for unit in order], fontsize=7.5)
    else:
        axes.set_xticks([])
    if len(order):
        keys = [Patch(color=BLUE, label="active"), Patch(color=GREY, label="inactive")]
        axes.legend(handles=keys, frameon=False, fontsize=9)
    if num_lost := int((~np.isfinite(heights)).sum()):
        _note(axes, f"{num_lost} not finite, left out", at=(0.5, 0.9))
    return figure


# Data that are not images ----------------------------------------------------------------------


def rows(x: Tensor, others: Mapping[str, Tensor] | None = None, *, title: str) -> Figure:
    """Draw data beside their reconstructions (or samples) as heat maps, one row for each datum.

    Each column of the data is shown in standard deviations from its mean, in every panel by the
    mean and standard deviation of ``x``, so that features of any unit are seen together.

    Args:
        x: The data, ``[N, *event_shape]``, flattened to ``[N, D]``.
        others: What is drawn beside them by name, each ``[M, *event_shape]``.
        title: One line above the panels.

    Raises:
        ValueError: If there is no datum, or the others have another number of features.
    """
    panels = {"data": x, **(others or {})}
    for name, part in panels.items():
        if not part.numel() or part.shape[1:] != x.shape[1:]:
            shapes = f"{name!r} has shape {tuple(part.shape)}, data {tuple(x.shape)}"
            raise ValueError(f"{shapes}; give at least one row of as many features as the data")
    flat = {
        name: part.detach().cpu().double().reshape(len(part), -1) for name, part in panels.items()
    }
    loc, scale = _column_statistics(flat["data"])
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad=SOFT)
    figure = _figure(1.2 + 3.6 * len(flat), 4.6)
    figure.suptitle(
        title, x=0.01, ha="left", fontsize=12, weight="bold", color=INK, parse_math=False
    )
    for n, (name, part) in enumerate(flat.items()):
        axes = _panel(figure, (1, len(flat), n + 1), name, "feature", "" if n else "datum")
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        values = np.ma.masked_invalid(((part - loc) / scale).numpy())
        image = axes.imshow(
            values, aspect="auto", interpolation="nearest", cmap=colours, vmin=-3, vmax=3
        )
    bar = figure.colorbar(image, ax=figure.axes, pad=0.02, aspect=30)
    bar.set_label("standard deviations from the data's mean", color=SOFT, fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _column_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    finite = torch.where(values.isfinite(), values, math.nan)
    loc = finite.nanmean(0).nan_to_num()
    scale = (finite - loc).square().nanmean(0).sqrt().nan_to_num()
    return loc, torch.where(scale > 0, scale, 1.0)


# Panels ----------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """Return an empty white figure, in inches, that lays out its panels when it is drawn."""
    figure = Figure((width, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def _panel(figure: Figure, place: tuple[int, int, int], title: str, x: str, y: str) -> Axes:
    axes = figure.add_subplot(*place, facecolor="white")
    axes.set_title(title, loc="left", fontsize=11.5, weight="bold", color=INK, parse_math=False)
    axes.set_xlabel(x, fontsize=9.5, color=SOFT, parse_math=False)
    axes.set_ylabel(y, fontsize=9.5, color=SOFT, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=SOFT, labelsize=8.5)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _note(axes: Axes, text: str, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
    side = "center" if at[0] == 0.5 else "left"
    axes.text(*at, text, transform=axes.transAxes, fontsize=9, color=SOFT, ha=side)
