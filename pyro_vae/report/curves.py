"""The course of training: what is maximised, its terms, auxiliary losses and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.inference.quantities import validation_title
from pyro_vae.report.image_grids import INK, SOFT
from pyro_vae.report.plots import (
    BLUE,
    CLASSES,
    GREY,
    ORANGE,
    PURPLE,
    Line,
    Panel,
    new_figure,
    note,
    panel,
)

__all__ = ["curves"]

HISTORY_KEYS = ("validation_rate_nats", "validation_distortion_nats", "learning_rate")


def curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what happened over the epochs: what is maximised, its terms and the learning rate.

    Args:
        history: One record per epoch with ``epoch``, the ``train_`` and the ``validation_`` value
            of what is maximised, ``train_nats`` and ``validation_elbo_nats`` for bounds, and
            optionally ``validation_rate_nats``, ``validation_distortion_nats``,
            ``learning_rate`` and auxiliary losses, ``*_loss``. Missing and non-finite values leave
            a gap. Panels without a value are left out; the learning rate has one only if it varies.
    """
    epochs = _series(history, "epoch")
    epochs = np.where(np.isfinite(epochs), epochs, np.arange(len(epochs)))
    rate, distortion, learning_rate = (_series(history, key) for key in HISTORY_KEYS)
    name, unit, train_key, validation_key = _maximised(history)
    train, validation = _series(history, train_key), _series(history, validation_key)
    value = [("training", train, GREY), ("validation", validation, BLUE)]
    title = "Evidence lower bound" if name == "ELBO" else name.capitalize()
    panels: list[Panel] = [(title, f"{name} ({unit} per datum)", value)]
    if np.isfinite([rate, distortion]).any():
        terms = [("rate", rate, ORANGE), ("distortion", distortion, PURPLE)]
        panels.append(("Its two terms, on validation data", "nats per datum", terms))
    losses = [key for key in (history[0] if history else {}) if key.endswith("_loss")]
    if losses:
        colours = zip(losses, CLASSES, strict=False)
        drawn = [(key.removesuffix("_loss"), _series(history, key), c) for key, c in colours]
        panels.append(("Auxiliary losses, on validation data", "per datum, as weighed", drawn))
    if len(np.unique(learning_rate[np.isfinite(learning_rate)])) > 1:
        panels.append(("Learning rate", "step size of the optimiser", [("", learning_rate, SOFT)]))
    figure = new_figure(1.0 + 4.4 * len(panels), 3.8)
    for n, (title, unit, lines) in enumerate(panels):
        axes = panel(figure, (1, len(panels), n + 1), title, "epoch", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _draw_lines(axes, epochs, lines)
    _focus(figure.axes[0], np.stack([train, validation]))
    return figure


def _maximised(history: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    """Return name and unit of what is maximised, and its keys in training and validation."""
    bound = ("ELBO", "nats", "train_nats", "validation_elbo_nats")
    first = history[0] if history else {}
    found = [key for key in first if key.startswith("validation_")]
    if bound[-1] in first or not found:
        return bound
    title = validation_title(first)
    return (*title, found[0].replace("validation_", "train_", 1), found[0])


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
        note(axes, "no values recorded")
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
