"""A confusion matrix: how many data of each class are in each cluster, or are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.report.image_grids import INK, SOFT

__all__ = ["confusion_matrix"]

_CELL, _MOST_NUMBERS = 0.42, 30  # inches; classes up to which cells have their number


def confusion_matrix(
    counts: Tensor,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str,
    axis_labels: tuple[str, str] = ("class", "cluster"),
) -> Figure:
    """Draw counts as shades of the part of each row, with the numbers in the cells.

    Args:
        counts: ``[num_rows, num_columns]``.
        row_labels: One for each row.
        column_labels: One for each column.
        title: One line above.
        axis_labels: What rows and columns are.

    Raises:
        ValueError: If the labels do not fit.
    """
    shape = (len(row_labels), len(column_labels))
    if tuple(counts.shape) != shape:
        raise ValueError(f"counts of shape {tuple(counts.shape)} for {shape} labels; give as many")
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    size = (1.8 + _CELL * shape[1], 1.4 + _CELL * shape[0])
    figure = Figure(size, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_title(title, fontsize=11, color=INK, weight="bold")
    axes.set_xticks(range(shape[1]), column_labels, fontsize=8, rotation=45, ha="right")
    axes.set_yticks(range(shape[0]), row_labels, fontsize=8)
    axes.set_ylabel(axis_labels[0], color=SOFT)
    axes.set_xlabel(axis_labels[1], color=SOFT)
    axes.tick_params(length=0, colors=SOFT)
    axes.spines[:].set_visible(False)
    if max(shape) <= _MOST_NUMBERS:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else INK
            number = f"{int(counts[row, column])}"
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    return figure
