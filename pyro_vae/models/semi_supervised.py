"""M2, the semi-supervised VAE: the label is a latent where it is not given."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.classes import assemble_semi_supervised
from pyro_vae.components.conditional import Shape
from pyro_vae.components.labelled import beside
from pyro_vae.inference.auxiliary import auxiliary_loss

__all__ = ["M2"]


class M2(PyroModule):
    r"""The semi-supervised model M2: a class and a style, of which the class is given at times.

    Generative process, for each of B data:

    .. math:: y \sim p(y), \qquad z \sim p(z \mid y), \qquad x \sim p(x \mid z, y),

    with the posterior :math:`q(y \mid x) \, q(z \mid x, y)`. The bound of a datum with a class is
    one of :math:`\log p(x, y)`, that of any other one of :math:`\log p(x)`, exact in y: all classes
    are run through, and weighed by q. Beside the bound, q(y | x) learns as a classifier of the data
    with a class, from :math:`-\alpha \log q(y \mid x)`.

    ======  =====================================  ==================
    symbol  site                                   shape
    ======  =====================================  ==================
    y       "y_observed" where it is given,        [B, num_classes]
            "y_unobserved" elsewhere
    z       "z"                                    [B, *latent_shape]
    x       "x"                                    [B, *event_shape]
    ======  =====================================  ==================

    Labels are numbers from 0, and -1 where there is none. Rows with a label are scored with it
    wherever they are handed over, in validation too.

    Args:
        classes: p(y), a module that returns a distribution over one-hot vectors.
        prior: p(z | y), a module that maps y to a distribution; in the paper the same for all.
        likelihood: p(x | z, y), a module that maps z, flat, and y behind it to a distribution.
        classifier: q(y | x), a module that maps x to a distribution over one-hot vectors.
        features: What q(z | x, y) sees of x, a module that makes a vector of it.
        posterior: q(z | x, y), a module that maps features, and y behind them, to a distribution.
        num_classes: How many classes there are: labels count from 0.
        alpha: What log q(y | x) of a datum with a class counts. The paper's 0.1 N is, for each of
            M data with a class among N, :math:`0.1 \, N / M`.

    Raises:
        ValueError: If alpha is negative or not finite.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling,
        2014)
    """

    one_hot: Tensor

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
        num_classes: int,
        alpha: float = 10.0,
    ) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha={alpha}: the weight of the classifier's loss is 0 or more")
        self.classes, self.prior, self.likelihood = classes, prior, likelihood
        self.classifier, self.features, self.posterior = classifier, features, posterior
        self.num_classes, self.alpha = num_classes, alpha
        self.register_buffer("one_hot", torch.eye(num_classes), persistent=False)

    def model(self, x: Tensor, y: Tensor, labelled: Tensor) -> None:
        """Declare p(y) p(z | y) p(x | z, y) for data ``[B, *event_shape]``, labels ``[B]``."""
        given = self.one_hot[y.clamp(min=0)]
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.classes(), obs=given, obs_mask=labelled)
            p_z = self.prior(y)
            z = pyro.sample("z", p_z)
            z_and_y = beside(z, y, event_dim=len(p_z.event_shape))
            pyro.sample("x", self.likelihood(z_and_y), obs=x)

    def guide(self, x: Tensor, y: Tensor, labelled: Tensor) -> None:
        """Declare q(y | x) q(z | x, y) for data ``[B, *event_shape]``, labels ``[B]``."""
        given = self.one_hot[y.clamp(min=0)]
        with pyro.plate("data", len(x)):
            q_y = self.classifier(x)
            auxiliary_loss("classification", -self.alpha * labelled * q_y.log_prob(given))
            with poutine.mask(mask=~labelled):
                y = pyro.sample("y_unobserved", q_y, infer={"enumerate": "parallel"})
            y = torch.where(labelled.unsqueeze(-1), given, y)
            pyro.sample("z", self.posterior(beside(self.features(x), y, event_dim=1)))

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (40,),
        *,
        num_classes: int,
        alpha: float = 10.0,
        labels: Tensor | None = None,
        **parts: Any,
    ) -> M2:
        """Build one of families that fit these shapes; see ``assemble_semi_supervised``.

        Args:
            event_shape: The shape of one datum.
            latent_shape: The shape of one latent z.
            num_classes: How many classes there are.
            alpha: What log q(y | x) of a datum with a class counts.
            labels: Of the data, which are not looked at.
            parts: As of ``assemble_semi_supervised``.
        """
        built = assemble_semi_supervised(event_shape, latent_shape, num_classes, **parts)
        return cls(**built, num_classes=num_classes, alpha=alpha)
