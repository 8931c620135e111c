"""Pictures of quantised latents: how often each code occurs, and which stand where."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.report.plots import BLUE, MAX_BARS, new_figure, panel

__all__ = ["code_maps", "code_usage"]


def code_usage(counts: Tensor) -> Figure:
    """Draw how often each code occurs, the most frequent first.

    Args:
        counts: Of each code, ``[K]``.
    """
    shares = np.sort(counts.double().numpy())[::-1] / max(1, int(counts.sum()))
    shown = shares[:MAX_BARS]
    figure = new_figure(5.4, 3.4)
    left_out = "" if len(shown) == len(shares) else f"; {len(shares) - len(shown):,} not shown"
    title = f"{int((counts > 0).sum()):,} of {len(counts):,} codes occur{left_out}"
    axes = panel(figure, (1, 1, 1), title, "code, by frequency", "share of all places")
    axes.bar(np.arange(len(shown)), shown, color=BLUE, width=1.0)
    axes.axhline(1 / len(counts), color="black", linewidth=0.8, linestyle=":")
    return figure


def code_maps(indices: Tensor, num_codes: int) -> Figure:
    """Draw the codes of some data in their places, one colour for each code.

    Args:
        indices: ``[N, rows, columns]``, or ``[N, M]`` for codes in a row.
        num_codes: K.
    """
    maps = indices if indices.dim() == 3 else indices.reshape(len(indices), 1, -1)
    figure = new_figure(1.2 * len(maps), 1.6)
    for place, codes in enumerate(maps):
        axes = figure.add_subplot(1, len(maps), place + 1)
        axes.imshow(codes.numpy(), cmap="nipy_spectral", vmin=0, vmax=num_codes - 1)
        axes.set_axis_off()
    return figure
