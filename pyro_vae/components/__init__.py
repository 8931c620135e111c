"""Modules that return a distribution: the vocabulary of p and q."""

from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Automatic, Conditional, Family
from pyro_vae.components.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.components.networks import MLP, Convolutional, Standardize
from pyro_vae.components.posteriors import (
    Concrete,
    DiagonalNormal,
    RelaxedBernoulli,
    StraightThroughBernoulli,
    StraightThroughCategorical,
)
from pyro_vae.components.priors import StandardNormal, learned

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
    "learned",
]
