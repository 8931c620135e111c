"""Resample the lower layers of a hierarchy while the upper ones are kept.

Layers are in the order of the model, the uppermost first, as it declares z_L before z_1. Pictures
are the mean of the likelihood, and those of several observed sites are distinguished by name, as in
``samples``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.evaluation.batching import check_counts, cycled
from pyro_vae.evaluation.programs import generates, takes_program
from pyro_vae.evaluation.samples import Generated, codes, generate, generated
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout

__all__ = ["reconstruct_from_top", "resample_below"]


@generates
def resample_below(
    probe: Probe,
    x_like: Tensor,
    *fields: Tensor,
    num_samples: int = 8,
    seed: int = 0,
) -> Generated:
    """Return data of one draw of the latents, redrawn below each layer, ``[L, S, *event_shape]``.

    In row l, the l + 1 uppermost layers are the same for all samples, and the others are drawn
    given them; in the last row nothing is left to draw.

    Args:
        probe: The program: ``vae``, or ``model`` alone.
        x_like: Data, ``[N, *event_shape]``: only shape, type and device count.
        fields: What else the model takes, ``[N, ...]`` each; those of the first datum are taken.
        num_samples: S, in each row.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If ``num_samples`` is less than 1, ``x_like`` is empty, or the model breaks the
            convention.
    """
    check_counts(num_samples=num_samples)
    args = (x_like, *fields)
    program, layout = probe.program, probe.layout
    first = tuple(arg[:1] for arg in args)
    rows = cycled(first, num_samples)
    with program.evaluating(seed=seed):
        drawn = codes(program, layout, first, stochastic=True)
        same = {name: cycled((value,), num_samples)[0] for name, value in drawn.items()}
        return _by_layer(program, layout, layout.latents, same, rows)


@takes_program
def reconstruct_from_top(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    seed: int = 0,
) -> Generated:
    """Return the data as the uppermost layers alone see them, ``[L, N, *event_shape]``.

    In row l, the l + 1 uppermost layers are drawn from the guide, and the others from the model
    given them: what these layers know of x is what the row has in common with it.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If ``x`` is empty or the program breaks the convention.
    """
    args = (x, *fields)
    program, layout = probe.program, probe.layout
    with program.evaluating(seed=seed):
        drawn = codes(program, layout, args, stochastic=True)
        trace, _ = program.traces(*(arg[:2] for arg in args))
        names = tuple(name for name in trace.nodes if name in layout.latents)
        return _by_layer(program, layout, names, drawn, args)


def _by_layer(
    program: Program,
    layout: Layout,
    names: tuple[str, ...],
    values: dict[str, Tensor],
    rows: tuple[Tensor, ...],
) -> Generated:
    """Return the data of the first, the first two, ... of these layers, ``[L, N, ...]``."""
    found = []
    for number in range(len(names)):
        kept = {name: values[name] for name in names[: number + 1]}
        found.append(generate(program, layout, kept, rows, center=False))
    stacked = {name: torch.stack([each[name] for each in found]) for name in layout.generated}
    return generated(stacked)
