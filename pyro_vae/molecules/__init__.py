"""Molecules that a model writes: are they any good, what do they look like, and a search for some.

This is a neighbour of the package, imported only when asked for: it needs rdkit, which
``pip install 'pyro-vae[molecules]'`` installs beside the package selfies.
"""

from pyro_vae.molecules.chemistry import PROPERTIES, canonical, fingerprints, parsed, properties
from pyro_vae.molecules.pictures import grid
from pyro_vae.molecules.quality import Recovery, SampleQuality, recovery, sample_quality
from pyro_vae.molecules.regression import PropertyRegression
from pyro_vae.molecules.search import Proposal, propose

__all__ = [
    "PROPERTIES",
    "PropertyRegression",
    "Proposal",
    "Recovery",
    "SampleQuality",
    "canonical",
    "fingerprints",
    "grid",
    "parsed",
    "properties",
    "propose",
    "recovery",
    "sample_quality",
]
