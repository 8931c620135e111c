"""Run a program on a few rows to find what its sites observe."""

from __future__ import annotations

from typing import Any

from pyro_vae.datasets import Data
from pyro_vae.distributions.drawing import Drawn
from pyro_vae.inference import Probe, Program
from pyro_vae.inference.sites import observed_places, view_of
from pyro_vae.inference.support import family_name

__all__ = ["drawn_by_symbol", "likelihoods", "observed_support"]


def likelihoods(program: Program, few: Data) -> dict[str, str]:
    """Return the name of the distribution of each observed site."""
    return {name: family_name(site["fn"]) for name, site in _sites(program, few).items()}


def drawn_by_symbol(program: Program, few: Data) -> tuple[str, ...]:
    """Return the observed sites that can be drawn symbol by symbol, by a rule."""
    return tuple(name for name, site in _sites(program, few).items() if _is_drawn(site["fn"]))


def _is_drawn(fn: Any) -> bool:
    return isinstance(fn, Drawn) or (hasattr(fn, "base_dist") and _is_drawn(fn.base_dist))


def observed_support(program: Program, few: Data) -> Any:
    """Return the support of the one site that observes the data, all of them and as they are.

    None where several do, or what they observe is computed of the data, or part of it, or masked;
    and where the support is not stated.
    """
    first, *others = _sites(program, few).values()
    view = view_of(first, few.tensors(program.fields))
    if others or view is None or view.argument > 0 or observed_places(first) is not None:
        return None
    if first["value"].numel() != few.x.numel():
        return None
    try:
        return first["fn"].support
    except (AttributeError, NotImplementedError):
        return None


def _sites(program: Program, few: Data) -> dict[str, Any]:
    probe = Probe(program, *few.tensors(program.fields))
    return {name: probe.model_trace.nodes[name] for name in probe.layout.generated}
