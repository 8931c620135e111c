"""Modules that return a distribution: the vocabulary of p and q."""

from pyro_vae.components.assembly import assemble, assemble_hierarchy, assemble_ladder
from pyro_vae.components.autoregressive import AutoregressiveBernoulli
from pyro_vae.components.conditional import Automatic, Conditional, Family
from pyro_vae.components.flows import (
    AffineCoupling,
    InverseAutoregressive,
    MaskedAutoregressive,
    NeuralSpline,
)
from pyro_vae.components.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.components.mixtures import MixtureOfNormals, VampPrior
from pyro_vae.components.networks import MLP, Convolutional, Standardize
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal, learned
from pyro_vae.components.relaxed import (
    Concrete,
    RelaxedBernoulli,
    StraightThroughBernoulli,
    StraightThroughCategorical,
)
from pyro_vae.components.spheres import UniformSphere

__all__ = [
    "MLP",
    "AffineCoupling",
    "Automatic",
    "AutoregressiveBernoulli",
    "Bernoulli",
    "Binomial",
    "Concrete",
    "Conditional",
    "Convolutional",
    "DiagonalNormal",
    "Family",
    "InverseAutoregressive",
    "MaskedAutoregressive",
    "MixtureOfNormals",
    "NeuralSpline",
    "Normal",
    "RelaxedBernoulli",
    "StandardNormal",
    "Standardize",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
    "UniformSphere",
    "VampPrior",
    "assemble",
    "assemble_hierarchy",
    "assemble_ladder",
    "learned",
]
