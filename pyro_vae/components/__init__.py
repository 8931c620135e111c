"""Modules that return a distribution: the vocabulary of p and q."""

from pyro_vae.components.assembly import assemble, assemble_hierarchy, assemble_ladder
from pyro_vae.components.conditional import Automatic, Conditional, Family
from pyro_vae.components.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.components.networks import MLP, Convolutional, Standardize
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal, learned
from pyro_vae.components.relaxed import (
    Concrete,
    RelaxedBernoulli,
    StraightThroughBernoulli,
    StraightThroughCategorical,
)

__all__ = [
    "MLP",
    "Automatic",
    "Bernoulli",
    "Binomial",
    "Concrete",
    "Conditional",
    "Convolutional",
    "DiagonalNormal",
    "Family",
    "Normal",
    "RelaxedBernoulli",
    "StandardNormal",
    "Standardize",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
    "assemble",
    "assemble_hierarchy",
    "assemble_ladder",
    "learned",
]
