"""Pictures of topics: which are alike, and how much of the documents each has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.report.plots import BLUE, HALO, new_figure, panel

__all__ = ["topic_map"]

_LARGEST = 1500.0  # points squared, of a topic that has all words


def topic_map(points: Tensor, shares: Tensor, names: Sequence[str]) -> Figure:
    """Draw topics in the plane, each as large as its share of the documents.

    Args:
        points: ``[K, 2]``; like topics lie near each other.
        shares: Of each topic, ``[K]``.
        names: What each is called.
    """
    figure = new_figure(8.6, 6.4)
    axes = panel(figure, (1, 1, 1), "Topics; an area is a share of the documents", "", "")
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    places, sizes = points.double().numpy(), shares.double().numpy()
    areas = np.maximum(_LARGEST * sizes / max(float(sizes.max()), 1e-12), 4.0)
    axes.scatter(places[:, 0], places[:, 1], areas, BLUE, alpha=0.35, linewidths=0.8)
    for (x, y), name in zip(places, names, strict=True):
        axes.annotate(name, (x, y), ha="center", va="center", fontsize=7, path_effects=[HALO])
    axes.margins(0.12)
    return figure
