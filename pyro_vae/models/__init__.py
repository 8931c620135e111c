"""Short Pyro programs: a model, a guide, and nothing else of weight."""

from pyro_vae.models.vae import VAE

__all__ = ["VAE"]
