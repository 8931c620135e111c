"""Pictures of a comparison: bounds against steps and seconds, and gradients side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pyro_vae.evaluation.estimates import Estimate
from pyro_vae.laboratory.comparison_record import Comparison, Row
from pyro_vae.report.plots import CLASSES, INK, LINE, SOFT, new_figure, panel

__all__ = ["compared"]


def compared(found: Comparison) -> Any:
    """Draw a comparison; one colour for each objective, whiskers of one standard error.

    Args:
        found: What ``compare`` returned.

    Returns:
        A matplotlib figure, for ``plots.save``.
    """
    colours = {
        row.objective: CLASSES[n % len(CLASSES)]
        for n, row in enumerate(row for row in found.rows if row.model is not None)
    }
    trained = [row for row in found.rows if row.curve]
    measured = [row for row in found.rows if row.model is not None]
    figure = new_figure(14, 2 * max(3.8, 1.2 + 0.4 * len(measured)))
    nats = "nats per held-out datum"
    lines = (
        ("The ELBO by steps", "gradient steps", "step", "elbo_nats"),
        ("log p(x) by steps", "gradient steps", "step", "log_p_nats"),
        ("log p(x) by time", "seconds of steps", "seconds", "log_p_nats"),
    )
    for place, (title, unit, x, y) in enumerate(lines, start=1):
        axes = panel(figure, (2, 3, place), title, unit, nats if place == 1 else "")
        _draw_curves(axes, trained, colours, x, y)
        if place == 1 and trained:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    for place, (title, unit, of) in enumerate(_BARS, start=4):
        axes = panel(figure, (2, 3, place), title, unit, "")
        _draw_dots(axes, measured, colours, of)
    figure.axes[4].axvline(found.settings["snr_floor"], color=SOFT, linestyle=":", linewidth=1)
    return figure


def _draw_curves(axes: Any, rows: Sequence[Row], colours: dict[str, str], x: str, y: str) -> None:
    for row in rows:
        points = [(getattr(point, x), getattr(point, y)) for point in row.curve]
        axes.errorbar(
            [place for place, _ in points], [estimate.value for _, estimate in points],
            yerr=[_whisker(estimate) for _, estimate in points], color=colours[row.objective],
            linewidth=1.8, marker="o", markersize=3, elinewidth=0.8, label=row.objective,
        )  # fmt: skip
    axes.set_xscale("log")
    values = sorted(getattr(point, y).value for row in rows for point in row.curve)
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        # The first points lie far below all that is to be distinguished.
        low, high = finite[len(finite) // 4], finite[-1]
        axes.set_ylim(low - 0.2 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6)


def _draw_dots(
    axes: Any, rows: Sequence[Row], colours: dict[str, str], of: Callable[[Row], Sequence[Any]]
) -> None:
    """Draw an estimate for the model (filled) and one for the guide (hollow) of each objective."""
    for place, row in enumerate(rows):
        for offset, estimate, fill in zip((-0.15, 0.15), of(row), ("full", "none"), strict=True):
            if estimate is not None and math.isfinite(estimate.value):
                axes.errorbar(
                    [estimate.value], [place + offset], xerr=[_whisker(estimate)], marker="o",
                    color=colours[row.objective], fillstyle=fill, markersize=6, linestyle="",
                )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.objective for row in rows], fontsize=8, color=SOFT)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=LINE, linewidth=0.6)


def _whisker(estimate: Estimate) -> float:
    return estimate.standard_error if math.isfinite(estimate.standard_error) else 0.0


def _parts(name: str) -> Callable[[Row], Sequence[Any]]:
    return lambda row: [getattr(part, name) for part in (row.model, row.guide)]


_BARS: tuple[tuple[str, str, Callable[[Row], Sequence[Any]]], ...] = (
    ("Bias of the gradient", "relative; model filled, guide hollow", _parts("relative_bias")),
    ("Signal-to-noise ratio", "mean over parameters; dotted: noise alone", _parts("snr")),
    ("Variance", "summed over parameters", _parts("total_variance")),
)
