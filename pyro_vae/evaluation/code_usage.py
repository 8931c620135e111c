"""How the codes of quantised latents are used: how many, how evenly, and where."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.distributions.codes import CodePoint
from pyro_vae.evaluation.batching import batches, pairs_at_once
from pyro_vae.evaluation.estimates import Result
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.inference.probe import Probe

__all__ = ["CodeUsage", "code_indices", "code_usage", "quantized_sites"]


@dataclass(frozen=True, repr=False)
class CodeUsage(Result):
    r"""How the codes of one latent site are used by some data.

    Attributes:
        counts: How often each code occurs over data and places, ``[K]``.
        perplexity: :math:`\exp H` of the shares, from 1 (one code) to K (all alike).
    """

    counts: Tensor
    perplexity: float

    @property
    def num_codes(self) -> int:
        """K, how many codes there are."""
        return len(self.counts)

    @property
    def num_used(self) -> int:
        """How many codes occur."""
        return int((self.counts > 0).sum())


def quantized_sites(probe: Probe) -> dict[str, CodePoint]:
    """Return the latent sites that the guide draws from a codebook, with their distributions."""
    sites = {name: node["fn"] for name, node in probe.guide_trace.nodes.items()
             if name in probe.layout.latents}  # fmt: skip
    return {name: fn for name, fn in sites.items() if isinstance(fn, CodePoint)}


@takes_program
def code_indices(probe: Probe, x: Tensor, *fields: Tensor) -> dict[str, Tensor]:
    """Return the code in each place of each quantised latent, ``[N, *grid]`` by site.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.

    Raises:
        ValueError: If no latent is quantised, or the program breaks the convention.
    """
    sites = quantized_sites(probe)
    if not sites:
        raise ValueError(
            "no latent of the program is quantised: its guide draws none from a codebook, as "
            "NearestCode and FiniteScalar do"
        )
    args = (x, *fields)
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    with probe.program.evaluating(seed=0):
        for batch in batches(args, pairs_at_once(probe.program, probe.layout, *args)):
            _, guide_trace = probe.program.traces(*batch)
            for name, parts in found.items():
                parts.append(guide_trace.nodes[name]["fn"].indices)
    return {name: torch.cat(parts) for name, parts in found.items()}


@takes_program
def code_usage(probe: Probe, x: Tensor, *fields: Tensor) -> dict[str, CodeUsage]:
    """Return how often each code occurs, by site.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.

    Raises:
        ValueError: If no latent is quantised, or the program breaks the convention.
    """
    sites = quantized_sites(probe)
    found = code_indices(probe, x, *fields)
    return {name: _usage(indices, sites[name].codes.num_codes) for name, indices in found.items()}


def _usage(indices: Tensor, num_codes: int) -> CodeUsage:
    counts = torch.bincount(indices.flatten().cpu(), minlength=num_codes)
    shares = counts.double() / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return CodeUsage(counts, entropy.exp().item())
