"""Inference on any Pyro model and guide: programs, site terms, objectives, handlers, schedules."""

from pyro_vae.inference.aggregate import DIPVAE, BetaTCVAE, InfoVAE, OfMeans, OfSamples
from pyro_vae.inference.auxiliary import auxiliary_loss
from pyro_vae.inference.corrupted import Corrupted, CorruptedInputs
from pyro_vae.inference.detached import detached
from pyro_vae.inference.enumerated import Enumerated
from pyro_vae.inference.handlers import Frozen, Handler, KLWeight, StickingTheLanding, Temperature
from pyro_vae.inference.importance import CIWAE, MIWAE, PIWAE, DReG, InChunks, Renyi
from pyro_vae.inference.objectives import ELBO, IWAE, AnalyticELBO, Bound, Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program, ProgramError
from pyro_vae.inference.quantities import ELBO_NATS, Quantity
from pyro_vae.inference.reconstruction import Reconstruction
from pyro_vae.inference.refined import Refined
from pyro_vae.inference.refusals import check_objective, refusal, refusals
from pyro_vae.inference.regularized import BetaVAE, Capacity, FreeBits, Groups, Layers, Units
from pyro_vae.inference.schedules import (
    Constant,
    Controlled,
    Cosine,
    Cyclical,
    Linear,
    Moving,
    Schedule,
    Scheduled,
    Sigmoid,
    moving_in,
)
from pyro_vae.inference.score_function import NVIL, RLOO, VIMCO, Baseline, DisARM
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.support import check_support
from pyro_vae.inference.terms import SiteTerms, site_terms
from pyro_vae.inference.wake_sleep import RWS, TVO, RWSDReG

__all__ = [
    "CIWAE",
    "DIPVAE",
    "ELBO",
    "ELBO_NATS",
    "IWAE",
    "MIWAE",
    "NVIL",
    "PIWAE",
    "RLOO",
    "RWS",
    "TVO",
    "VIMCO",
    "AnalyticELBO",
    "Baseline",
    "BetaTCVAE",
    "BetaVAE",
    "Bound",
    "Capacity",
    "Constant",
    "Controlled",
    "Corrupted",
    "CorruptedInputs",
    "Cosine",
    "Cyclical",
    "DReG",
    "DisARM",
    "Enumerated",
    "FreeBits",
    "Frozen",
    "Groups",
    "Handler",
    "InChunks",
    "InfoVAE",
    "KLWeight",
    "Layers",
    "Layout",
    "Linear",
    "Moving",
    "Objective",
    "OfMeans",
    "OfSamples",
    "Probe",
    "Program",
    "ProgramError",
    "Quantity",
    "RWSDReG",
    "Reconstruction",
    "Refined",
    "Renyi",
    "Schedule",
    "Scheduled",
    "Sigmoid",
    "SiteTerms",
    "StickingTheLanding",
    "Temperature",
    "Units",
    "auxiliary_loss",
    "check_objective",
    "check_support",
    "detached",
    "moving_in",
    "refusal",
    "refusals",
    "site_terms",
]
