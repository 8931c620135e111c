"""Densities that Pyro and torch lack, as distributions of Pyro's."""

from pyro_vae.distributions.categories import BagOfWords, Levels, PaddedSequence
from pyro_vae.distributions.discretized import (
    CoupledLogisticMixture,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyro_vae.distributions.entries import ColumnEntries, IncompleteEntries
from pyro_vae.distributions.unit import ContinuousBernoulli, LogitNormal

__all__ = [
    "BagOfWords",
    "ColumnEntries",
    "ContinuousBernoulli",
    "CoupledLogisticMixture",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "IncompleteEntries",
    "Levels",
    "LogitNormal",
    "PaddedSequence",
]
