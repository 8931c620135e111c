"""A search in latent space that proposes molecules with more of a property."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluation.estimates import Result
from pyro_vae.molecules.chemistry import canonical, parsed, properties
from pyro_vae.molecules.regression import PropertyRegression

__all__ = ["Proposal", "propose"]


@dataclass(frozen=True, repr=False)
class Proposal(Result):
    """A molecule that the search has found.

    Attributes:
        smiles: Canonical.
        predicted: What the regression says of the latents that it was written from.
        predicted_scale: How sure it is, one standard deviation.
        computed: What rdkit says of the molecule.
        start: The row of the latents that the search started from.
    """

    smiles: str
    predicted: float
    predicted_scale: float
    computed: float
    start: int


def propose(
    regression: PropertyRegression,
    starts: Tensor,
    write: Callable[[Tensor], Sequence[str]],
    *,
    name: str,
    known: Collection[str] = (),
    sign: int = 1,
    caution: float = 1.0,
    num_steps: int = 50,
    step: float = 0.05,
) -> list[Proposal]:
    r"""Return new molecules, the one with the most of a property by its prediction first.

    Latents climb :math:`m(z) - c\, s(z)`, mean and scale of the regression: where it knows nothing,
    s is large, and a decoder writes no molecules. Those at the start are written, too, and those
    half-way.

    Args:
        regression: From latents to the property.
        starts: Latents to start from, such as those of the best training data, ``[N, D]``.
        write: Returns the SMILES that a model writes for latents, ``[M, D]``, such as the likeliest
            symbols.
        name: Of the property, one of ``PROPERTIES``, which is computed of what is found.
        known: SMILES that are not new, such as the training data.
        sign: 1 searches for more of the property, -1 for less.
        caution: c; 0 trusts the mean alone.
        num_steps: Of Adam.
        step: Its size, in standard deviations of each latent over the training data.

    Raises:
        ValueError: If there is no start, or a number is out of range, or rdkit is not installed.

    References:
        Automatic Chemical Design Using a Data-Driven Continuous Representation of Molecules
        (Gomez-Bombarelli et al., 2018)
    """
    if not len(starts) or sign not in (1, -1) or num_steps < 1:
        raise ValueError(f"{len(starts)} starts, sign={sign}, num_steps={num_steps}: give a start, "
                         "1 or -1, and a step")  # fmt: skip
    path = climb(regression, starts, sign=sign, caution=caution, num_steps=num_steps, step=step)
    found: dict[str, Proposal] = {}
    old = {each for each in canonical(parsed(known)) if each is not None}
    for z in path:
        mean, scale = (each.tolist() for each in regression(z))
        molecules = parsed(write(z.to(starts)))
        for start, (molecule, smiles) in enumerate(
            zip(molecules, canonical(molecules), strict=True)
        ):
            if smiles is None or smiles in old or smiles in found:
                continue
            computed = float(properties([molecule], name)[0])
            found[smiles] = Proposal(smiles, mean[start], scale[start], computed, start)
    return sorted(found.values(), key=lambda each: -sign * each.predicted)


def climb(
    regression: PropertyRegression,
    starts: Tensor,
    *,
    sign: int,
    caution: float,
    num_steps: int,
    step: float,
) -> list[Tensor]:
    """Return latents at the start, half-way and at the end of the climb, ``[N, D]`` each."""
    start = starts.detach().cpu().double()
    moved = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=step)
    path = [start]
    for done in range(1, num_steps + 1):
        optimizer.zero_grad()
        mean, scale = regression(start + moved * regression.width)
        (caution * scale - sign * mean).sum().backward()
        optimizer.step()
        if done in (num_steps // 2, num_steps):
            path.append((start + moved * regression.width).detach().clone())
    return path
