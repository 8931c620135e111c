"""Plots: tensors and records in, a matplotlib figure out.

Figures are made directly, never through pyplot, so no backend is switched and nothing stays open.
Images are shown one to one as ``mosaic`` lays them out: gaps are even, and what is seen is what
was computed. The colours can be distinguished with the common colour-vision deficiencies: Paul Tol,
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

from pyro_vae.files import replace_file
from pyro_vae.report.image_grids import (
    DPI,
    INK,
    LINE,
    SOFT,
    image_grid,
    interpolation,
    manifold,
    reconstructions,
    traversal,
)

__all__ = [
    "image_grid",
    "interpolation",
    "latent_scatter",
    "layer_bars",
    "manifold",
    "new_figure",
    "panel",
    "png",
    "rate_distortion",
    "reconstructions",
    "rows",
    "save",
    "traversal",
    "unit_bars",
]

BLUE, ORANGE, PURPLE, GREY = "#4477aa", "#ee7733", "#aa3377", "#a9aeb8"
CLASSES = (
    *("#332288", "#ddaa33", "#cc6677", "#117733", "#88ccee"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#5f6673"),
)
HALO = withStroke(linewidth=3, foreground="white")
MAX_CLASSES = 2 * len(CLASSES)  # each colour once as a circle, once as a triangle
MAX_BARS = 200

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


# Latents ---------------------------------------------------------------------------------------


def latent_scatter(
    points: Tensor,
    labels: Tensor | None = None,
    *,
    title: str,
    axis_labels: tuple[str, str] = ("", ""),
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draw points in the plane, one colour and shape per class up to 20 classes.

    Args:
        points: ``[N, 2]``; points that are not finite are left out and counted.
        labels: The class of each point, ``[N]``, and -1 where it has none.
        title: One line above the panel.
        axis_labels: What the two axes are; empty for an embedding, whose axes mean nothing.
        classes: What the classes are called, by number; the numbers unless given.

    Raises:
        ValueError: If the points are not in a plane or the labels are not one per point.
    """
    if points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"points of shape {tuple(points.shape)} are not in a plane; give (N, 2)")
    if labels is not None and labels.shape != points.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {len(points)} points; give one each")
    finite = points.isfinite().all(1).cpu()
    positions = points.detach().cpu()[finite].double().numpy()
    figure = new_figure(6.6, 5.4)
    axes = panel(figure, (1, 1, 1), title, *axis_labels)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    if not any(axis_labels):
        axes.set(xticks=[], yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
    size = min(24.0, max(3.0, 20_000 / max(len(positions), 1)))
    given = labels.detach().cpu()[finite] if labels is not None else torch.zeros(len(positions))
    if 1 < len(given.unique()) <= MAX_CLASSES:
        names = {n: _shortened(name) for n, name in enumerate(classes or ())}
        names |= {-1: "no label"} if names else {}
        _draw_classes(axes, positions, given, size, names)
    else:
        axes.scatter(positions[:, 0], positions[:, 1], size, BLUE, alpha=0.7, linewidths=0)
    if num_lost := int((~finite).sum()):
        note(axes, f"{num_lost} not finite, left out", at=(0.02, 0.02))
    return figure


def _shortened(name: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return text if len(text) <= 20 else f"{text[:19]}…"


def _draw_classes(
    axes: Axes, positions: np.ndarray, classes: Tensor, size: float, names: Mapping[int, str]
) -> None:
    keys = []
    name: dict[str, Any] = {
        "ha": "center", "va": "center", "weight": "bold", "color": INK, "parse_math": False,
    }  # fmt: skip
    for n, label in enumerate(classes.unique().tolist()):
        colour, marker = CLASSES[n % len(CLASSES)], "o" if n < len(CLASSES) else "^"
        members = (classes == label).numpy()
        x, y = positions[members].T
        axes.scatter(x, y, size, colour, marker=marker, alpha=0.8, linewidths=0)
        text = names.get(label, f"{label:g}")
        axes.text(np.median(x), np.median(y), text, path_effects=[HALO], **name)
        # A name that begins with an underscore would be left out of the legend.
        kept = f" {text}" if text.startswith("_") else text
        keys.append(Line2D([], [], color=colour, marker=marker, ls="", ms=7, label=kept))
    legend = axes.legend(
        handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)


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
    figure = new_figure(9, 3.8)
    _draw_units(figure, (1, 1, 1), kl, activity, threshold, title)
    return figure


def layer_bars(layers: Mapping[str, tuple[Tensor, Tensor]], *, threshold: float = 0.01) -> Figure:
    """Draw ``unit_bars`` of each layer of a hierarchy, one panel below the other, on one scale.

    Args:
        layers: KL and activity of the units, ``[U]`` each, by layer.
        threshold: A unit is active when its activity is larger.

    Raises:
        ValueError: If there is no layer, or the two are not vectors of one length.
    """
    if not layers:
        raise ValueError("there is no layer to draw; give at least one")
    figure = new_figure(9, 0.6 + 2.6 * len(layers))
    for number, (name, (kl, activity)) in enumerate(layers.items(), start=1):
        _draw_units(
            figure, (len(layers), 1, number), kl, activity, threshold, f"KL per unit of {name}"
        )
    bounds = [limit for axes in figure.axes for limit in axes.get_ylim()]
    for axes in figure.axes:
        axes.set_ylim(min(bounds), max(bounds))
    return figure


def _draw_units(
    figure: Figure, place: tuple[int, int, int], kl: Tensor, activity: Tensor, threshold: float,
    title: str,
) -> None:  # fmt: skip
    if kl.dim() != 1 or kl.shape != activity.shape:
        shapes = f"{tuple(kl.shape)} and {tuple(activity.shape)}"
        raise ValueError(f"kl and activity have shapes {shapes}; give one number per unit in each")
    heights = kl.detach().cpu().double().numpy()
    active = (activity.detach().cpu() > threshold).numpy()
    order = np.argsort(-np.nan_to_num(heights, nan=-math.inf), kind="stable")[:MAX_BARS]
    shown = np.where(np.isfinite(heights[order]), heights[order], math.nan)
    colours = [BLUE if active[unit] else GREY for unit in order]
    total = heights[np.isfinite(heights)].sum()
    heading = f"{title}: {active.sum()} of {len(active)} active, {total:,.2f} nats in all"
    part = f", largest {MAX_BARS} of {len(active)}" if len(active) > MAX_BARS else ""
    axes = panel(figure, place, heading, f"unit (sorted by KL{part})", "KL (nats per datum)")
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
        note(axes, f"{num_lost} not finite, left out", at=(0.5, 0.9))


def rate_distortion(
    points: Mapping[str, tuple[float, float]],
    *,
    title: str = "Rate and distortion",
) -> Figure:
    r"""Draw rate against distortion, one point for each model, joined by rising rate.

    Along a dotted line the ELBO, :math:`-(R + D)`, is the same; lower left is better. Points that
    are not finite are left out and counted.

    Args:
        points: The rate and the distortion in nats per datum, by what tells the models apart, such
            as ``"beta = 4"``.
        title: One line above the panel.

    Raises:
        ValueError: If there is no point.

    Reference: Alexander Alemi, Ben Poole, Ian Fischer, Joshua Dillon, Rif Saurous, Kevin Murphy,
    "Fixing a Broken ELBO" (2018).
    """
    if not points:
        raise ValueError("there is no point to draw; give at least one rate and distortion")
    figure = new_figure(6.6, 4.8)
    axes = panel(
        figure,
        (1, 1, 1),
        title,
        "rate, KL (nats per datum)",
        "distortion, reconstruction NLL (nats per datum)",
    )
    finite = {name: p for name, p in points.items() if all(map(math.isfinite, p))}
    ordered = sorted(finite.values())
    axes.plot(*zip(*ordered, strict=True) if ordered else ([], []), color=BLUE, marker="o", ms=6)
    for name, point in finite.items():
        axes.annotate(
            name, point, xytext=(7, 5), textcoords="offset points", fontsize=8.5, color=INK,
            parse_math=False,
        )  # fmt: skip
    axes.margins(0.15)
    for total in {round(sum(point), 6) for point in ordered}:
        axes.axline((0, total), slope=-1, color=SOFT, linestyle=":", linewidth=0.9, zorder=0)
    if num_lost := len(points) - len(finite):
        note(axes, f"{num_lost} not finite, left out", at=(0.02, 0.02))
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
    figure = new_figure(1.2 + 3.6 * len(flat), 4.6)
    figure.suptitle(
        title, x=0.01, ha="left", fontsize=12, weight="bold", color=INK, parse_math=False
    )
    for n, (name, part) in enumerate(flat.items()):
        axes = panel(figure, (1, len(flat), n + 1), name, "feature", "" if n else "datum")
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


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure, in inches, that lays out its panels when it is drawn."""
    figure = Figure((width, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def panel(figure: Figure, place: tuple[int, int, int], title: str, x: str, y: str) -> Axes:
    """Add axes to a figure at a place ``(rows, columns, number)``, with a title and labels."""
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


def note(axes: Axes, text: str, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
    side = "center" if at[0] == 0.5 else "left"
    axes.text(*at, text, transform=axes.transAxes, fontsize=9, color=SOFT, ha=side)
