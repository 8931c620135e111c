"""The figure of ``speed.py``: a panel of bars for each program, curves below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

__all__ = ["draw"]

# One hue for each kind of contender: the first beginning of a name that fits counts.
_COLOURS = {
    "Pyro": "#d95f02",
    "by hand": "#8c8c8c",
    "pyro_vae, eager": "#9ecae1",
    "pyro_vae, recorded": "#4292c6",
    "pyro_vae, compiled": "#08306b",
    "fit, recorded": "#4292c6",
    "fit": "#08306b",
    "products": "#000000",
    "NumPyro": "#1b9e77",
    "": "#a6761d",
}
_SIZES = {"batch": "batch size", "data": "data per epoch"}
_MEASURES = {"ms": "ms a step", "seconds": "s an epoch", "peak_mib": "peak memory, MiB"}
_COLUMNS = 4


def draw(path: Path, programs: Mapping[str, Mapping[str, Any]], curves: Mapping[str, Any]) -> None:
    """Draw the milliseconds a step of all programs, and curves of time and memory, to ``path``."""
    shown = list(dict.fromkeys(name for measured in programs.values() for name in measured))
    num_rows = -(-len(programs) // _COLUMNS)
    heights = [0.9 + 0.22 * len(shown)] * num_rows + [2.8] * (2 if curves else 0)
    num_columns = max(min(_COLUMNS, len(programs)), len(curves))
    figure = Figure(figsize=(3.6 * num_columns + 1.5, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), num_columns, height_ratios=heights)
    for place, (title, measured) in enumerate(programs.items()):
        row, column = divmod(place, _COLUMNS)
        axes = figure.add_subplot(grid[row, column])
        _bars(axes, title, measured, shown, named=column == 0)
    for column, (axis, found) in enumerate(curves.items()):
        lines = found["contenders"]
        measures = [m for m in _MEASURES if all(m in line for line in lines.values())]
        for row, measure in enumerate(measures):
            axes = figure.add_subplot(grid[num_rows + row, column])
            axes.set_title("" if row else found["program"], fontsize=9)
            _lines(axes, _SIZES.get(axis, axis), measure, lines)
    figure.savefig(path, dpi=120)


def _bars(
    axes: Axes, title: str, measured: Mapping[str, Any], shown: Sequence[str], *, named: bool
) -> None:
    for place, name in enumerate(shown):
        if name not in measured:
            continue
        ms, (low, high) = measured[name]["median_ms"], measured[name]["quartiles_ms"]
        reach = [[max(0.0, ms - low)], [max(0.0, high - ms)]]
        axes.barh(place, ms, color=_colour(name), xerr=reach, error_kw={"lw": 0.8}, height=0.75)
        axes.text(high, place, f"  {ms:.3g}", va="center", fontsize=7)
    largest = max(row["quartiles_ms"][1] for row in measured.values())
    smallest = min(row["median_ms"] for row in measured.values())
    axes.set(xscale="log", xlim=(smallest / 2, largest * 2.5), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), shown if named else [""] * len(shown), fontsize=8)
    _plain(axes.xaxis)
    axes.set_title(title.replace(", ", ",\n", 1), fontsize=9)
    axes.set_xlabel(_MEASURES["ms"], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, size: str, measure: str, lines: Mapping[str, Any]) -> None:
    for name, line in lines.items():
        axes.plot(line["size"], line[measure], "o-", ms=3, color=_colour(name), label=name)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis)
    axes.set_xticks(sorted({number for line in lines.values() for number in line["size"]}))
    axes.set_xlabel(size, fontsize=8)
    axes.set_ylabel(_MEASURES[measure], fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=7)


def _colour(name: str) -> str:
    return next(colour for start, colour in _COLOURS.items() if name.startswith(start))
