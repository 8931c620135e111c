"""Train, judge and compare variational autoencoders written as Pyro programs.

A *model* declares the prior and the decoder likelihood, a *guide* the amortised encoder; ``SVI``
or ``fit`` maximises any of Pyro's ELBOs over both. ``VAE`` is such a program, made of parts that
combine freely; every function here works on any program of your own as well.
"""

from pyro_vae import components, datasets, evaluation, inference
from pyro_vae.engine import SVI, fit
from pyro_vae.models import VAE

__all__ = ["SVI", "VAE", "components", "datasets", "evaluation", "fit", "inference"]
