"""The Gaussian-mixture VAE: a discrete cluster, and a continuous style within it."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.classes import assemble_clusters
from pyro_vae.components.conditional import Shape
from pyro_vae.components.labelled import beside

__all__ = ["GMVAE"]


class GMVAE(PyroModule):
    r"""A variational autoencoder whose prior is a mixture, one component for each cluster.

    Generative process, for each of B data:

    .. math:: y \sim p(y), \qquad z \sim p(z \mid y), \qquad x \sim p(x \mid z),

    with the posterior :math:`q(y \mid x) \, q(z \mid x, y)`. The bound is exact in y: all clusters
    are run through, and weighed by q. No label is looked at.

    ======  =====  ==================
    symbol  site   shape
    ======  =====  ==================
    y       "y"    [B, num_clusters]
    z       "z"    [B, *latent_shape]
    x       "x"    [B, *event_shape]
    ======  =====  ==================

    Args:
        classes: p(y), a module that returns a distribution over one-hot vectors.
        prior: p(z | y), a module that maps y to a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        classifier: q(y | x), a module that maps x to a distribution over one-hot vectors.
        features: What q(z | x, y) sees of x, a module that makes a vector of it.
        posterior: q(z | x, y), a module that maps features, and y behind them, to a distribution.
        num_clusters: How many clusters there are.

    References:
        Variational Deep Embedding: An Unsupervised and Generative Approach to Clustering (Jiang,
        Zheng, Tan, Tang & Zhou, 2017), whose model it is
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders
        (Dilokthanakul et al., 2016)
    """

    synonyms = ("VaDE",)

    @at_the_door
    def __init__(
        self,
        *,
        classes: nn.Module,
        prior: nn.Module,
        likelihood: nn.Module,
        classifier: nn.Module,
        features: nn.Module,
        posterior: nn.Module,
        num_clusters: int = 10,
    ) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        self.classes, self.prior, self.likelihood = classes, prior, likelihood
        self.classifier, self.features, self.posterior = classifier, features, posterior

    def model(self, x: Tensor) -> None:
        """Declare p(y) p(z | y) p(x | z) for data ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.classes())
            z = pyro.sample("z", self.prior(y))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(y | x) q(z | x, y) for data ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})
            pyro.sample("z", self.posterior(beside(self.features(x), y, event_dim=1)))

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (10,),
        *,
        num_clusters: int = 10,
        **parts: Any,
    ) -> GMVAE:
        """Build one of families that fit these shapes; see ``assemble_clusters``."""
        built = assemble_clusters(event_shape, latent_shape, num_clusters, **parts)
        return cls(**built, num_clusters=num_clusters)
