"""Densities that Pyro and torch lack, as distributions of Pyro's."""

from pyro_vae.distributions.categories import Categorical, CategoricalSequence, Multinomial
from pyro_vae.distributions.discretized import (
    CoupledLogisticMixture,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyro_vae.distributions.entries import Columns, Incomplete
from pyro_vae.distributions.unit import ContinuousBernoulli, LogitNormal
from pyro_vae.distributions.units import InUnits, in_units, kinds_of_units

__all__ = [
    "Categorical",
    "CategoricalSequence",
    "Columns",
    "ContinuousBernoulli",
    "CoupledLogisticMixture",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "InUnits",
    "Incomplete",
    "LogitNormal",
    "Multinomial",
    "in_units",
    "kinds_of_units",
]
