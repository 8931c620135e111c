"""Modules that return a distribution: the vocabulary of p and q."""

from pyro_vae.components.amortized_flows import Householder, Planar, Radial, Sylvester
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
from pyro_vae.components.posteriors import (
    DiagonalNormal,
    FullNormal,
    LowRankNormal,
    PerDatum,
    Point,
)
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
    "FullNormal",
    "Householder",
    "InverseAutoregressive",
    "LowRankNormal",
    "MaskedAutoregressive",
    "MixtureOfNormals",
    "NeuralSpline",
    "Normal",
    "PerDatum",
    "Planar",
    "Point",
    "Radial",
    "RelaxedBernoulli",
    "StandardNormal",
    "Standardize",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
    "Sylvester",
    "UniformSphere",
    "VampPrior",
    "assemble",
    "assemble_hierarchy",
    "assemble_ladder",
    "learned",
]
