"""Densities and bijections that Pyro and torch lack, as distributions of Pyro's."""

from pyro_vae.distributions.autoregressive import (
    AutoregressiveBernoulli,
    AutoregressiveCategorical,
    AutoregressiveStep,
)
from pyro_vae.distributions.categories import Categorical, Multinomial
from pyro_vae.distributions.codes import CodePoint, CodeVectors, UniformCodeVectors
from pyro_vae.distributions.constraining import (
    below_diagonal,
    inverse_softplus,
    positive,
    raw_at_scale,
)
from pyro_vae.distributions.discretized import (
    CoupledLogisticMixture,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyro_vae.distributions.drawing import DrawingRule, drawn_with
from pyro_vae.distributions.entries import Columns, Incomplete
from pyro_vae.distributions.mixtures import AverageOfConditionals, DiagonalNormalMixture
from pyro_vae.distributions.normals import (
    FollowedNormal,
    FullNormal,
    LowRankNormal,
    NormalChain,
    Point,
)
from pyro_vae.distributions.pixels import AutoregressivePixels
from pyro_vae.distributions.relaxed import (
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    StraightThroughBernoulli,
    StraightThroughCategorical,
)
from pyro_vae.distributions.sequences import AutoregressiveSequence, CategoricalSequence
from pyro_vae.distributions.spheres import HypersphericalUniform, VonMisesFisher
from pyro_vae.distributions.unit import ContinuousBernoulli, LogitNormal
from pyro_vae.distributions.units import InUnits, in_units, kinds_of_units

__all__ = [
    "AutoregressiveBernoulli",
    "AutoregressiveCategorical",
    "AutoregressivePixels",
    "AutoregressiveSequence",
    "AutoregressiveStep",
    "AverageOfConditionals",
    "Categorical",
    "CategoricalSequence",
    "CodePoint",
    "CodeVectors",
    "Columns",
    "ContinuousBernoulli",
    "CoupledLogisticMixture",
    "DiagonalNormalMixture",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "DrawingRule",
    "FollowedNormal",
    "FullNormal",
    "HypersphericalUniform",
    "InUnits",
    "Incomplete",
    "LogitNormal",
    "LowRankNormal",
    "Multinomial",
    "NormalChain",
    "Point",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
    "UniformCodeVectors",
    "VonMisesFisher",
    "below_diagonal",
    "drawn_with",
    "in_units",
    "inverse_softplus",
    "kinds_of_units",
    "positive",
    "raw_at_scale",
]
