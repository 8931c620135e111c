"""What a program means while it is fitted: works on any Pyro model and guide."""

from pyro_vae.inference.objectives import ELBO, IWAE, Objective
from pyro_vae.inference.program import Layout, Program, ProgramError
from pyro_vae.inference.schedules import Constant, Cosine, Schedule
from pyro_vae.inference.support import check_support
from pyro_vae.inference.terms import SiteTerms, site_terms

__all__ = [
    "ELBO",
    "IWAE",
    "Constant",
    "Cosine",
    "Layout",
    "Objective",
    "Program",
    "ProgramError",
    "Schedule",
    "SiteTerms",
    "check_support",
    "site_terms",
]
