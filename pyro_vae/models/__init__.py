"""Short Pyro programs: a model, a guide, and nothing else of weight."""

from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.models.gaussian_mixture import GMVAE
from pyro_vae.models.hierarchical import HierarchicalVAE
from pyro_vae.models.ladder import LadderVAE
from pyro_vae.models.quantized import VQVAE
from pyro_vae.models.semi_amortized import SemiAmortizedVAE
from pyro_vae.models.semi_supervised import M2
from pyro_vae.models.topdown import TopDownVAE
from pyro_vae.models.topics import NVLDA, ProdLDA
from pyro_vae.models.unamortized import UnamortizedVAE
from pyro_vae.models.vae import VAE

__all__ = [
    "GMVAE",
    "M2",
    "NVLDA",
    "VAE",
    "VQVAE",
    "Autoencoder",
    "ConditionalVAE",
    "HierarchicalVAE",
    "LadderVAE",
    "ProdLDA",
    "SemiAmortizedVAE",
    "TopDownVAE",
    "UnamortizedVAE",
]
