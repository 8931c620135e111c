"""A top-down hierarchy of convolutional blocks: latents are images, at several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro
from pyro.nn import PyroModule, PyroModuleList
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import dependent_family, observations
from pyro_vae.components.conditional import Conditional, Family, Shape
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks import Standardize
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.top_down import (
    SubPixel,
    TopDownBlock,
    image_shapes,
    upward_steps,
)

__all__ = ["TopDownVAE"]


class TopDownVAE(PyroModule):
    r"""A top-down hierarchy of convolutional latents with one residual state.

    Generative process, for each of B data, from the top layer L down:

    .. math::
        z_l \sim p(z_l \mid z_{>l}), \qquad x \sim p(x \mid z_{\ge 1}),

    where a state h comes down through the blocks and holds all that lies above. The guide climbs
    without noise from x, which leaves :math:`d_l` at each layer, and comes down through the same
    blocks,

    .. math:: q(z_l \mid z_{>l}, x) = q(z_l \mid h_l, d_l).

    One list sets the number of layers, their resolutions and their channels, from the data up.

    ======  =====  ================================
    symbol  site   shape
    ======  =====  ================================
    z_l     "zl"   [B, channels_l, height_l, width_l]
    x       "x"    [B, *event_shape]
    ======  =====  ================================

    Args:
        event_shape: ``(channels, height, width)`` of one datum.
        latent_shapes: ``(channels, height, width)`` of the latent of each layer, from the data
            up; or ``(channels,)``, which takes half the height and width of what lies below it.
        prior: Builds the family of p(z_l | z_{>l}) from the latent's shape.
        likelihood: Builds the family of p(x | z) from ``event_shape``.
        posterior: Builds the family of q(z_l | z_{>l}, x) from the latent's shape.
        channels: The number of channels of the states h and d.

    Raises:
        ValueError: If the data are no images, there is no layer, one is larger than what lies
            below it, or a family's raw numbers are no image.

    References:
        Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images
        (Child, 2021)
        NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
    """

    near: ClassVar = {
        "NVAE": "TopDownVAE has its top-down layers, without its residual cells",
        "VDVAE": "TopDownVAE is a small one",
    }

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        latent_shapes: Sequence[Shape],
        *,
        prior: Callable[[Shape], Family] = DiagonalNormal,
        likelihood: Callable[[Shape], Family] = Bernoulli,
        posterior: Callable[[Shape], Family] = DiagonalNormal,
        channels: int = 32,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"channels={channels}: a state has 2 or more")
        shapes = image_shapes(event_shape, latent_shapes)
        blocks = [
            TopDownBlock(
                dependent_family(prior, posterior, shape), posterior(shape),
                channels=channels, depth=len(shapes),
            )
            for shape in shapes
        ]  # fmt: skip
        self.blocks = PyroModuleList(blocks)
        self.upward = PyroModuleList(upward_steps(event_shape, shapes, channels=channels))
        self.upward[0].insert(0, Standardize.unknown(event_shape))
        state = (channels, *shapes[0][1:])
        self.likelihood = Conditional(
            likelihood(event_shape), context_shape=state, network=SubPixel
        )

    def model(self, x: Tensor) -> None:
        """Declare p(z_L) ... p(z_1 | z_{>1}) p(x | z) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            h = None
            for layer in range(len(self.blocks), 0, -1):
                block = self.blocks[layer - 1]
                prior, h = block.prior(block.enter(h))
                h = block.leave(h, pyro.sample(f"z{layer}", prior))
            pyro.sample("x", self.likelihood(h), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(z_L | x) ... q(z_1 | z_{>1}, x) for the data ``x``, ``[B, *event_shape]``."""
        found = [x]
        for step in self.upward:
            found.append(step(found[-1]))
        with pyro.plate("data", len(x)):
            h = None
            for layer in range(len(self.blocks), 0, -1):
                block = self.blocks[layer - 1]
                h = block.enter(h)
                z = pyro.sample(f"z{layer}", block.posterior(h, found[layer]))
                h = block.leave(block.prior(h)[1], z)

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shapes: Sequence[Shape] = ((4,), (8,), (16,)),
        *,
        prior: Callable[[Shape], Family] = DiagonalNormal,
        likelihood: Callable[[Shape], Family] = Bernoulli,
        posterior: Callable[[Shape], Family] = DiagonalNormal,
        data: Tensor | None = None,
        channels: int = 32,
    ) -> TopDownVAE:
        """Build a hierarchy, and start it from data, ``[N, *event_shape]``, where given.

        The way up then standardises its inputs as these are, and the likelihood takes their units
        and starts at their mean. All else is as in the constructor.
        """
        vae = cls(
            event_shape, latent_shapes, prior=prior, likelihood=likelihood, posterior=posterior,
            channels=channels,
        )  # fmt: skip
        data = observations(data, event_shape)
        if data is not None:
            if bool(data.isnan().any()):
                raise ValueError(
                    "numbers are missing (NaN) in the data, and a top-down hierarchy has no mask "
                    "of them: use LadderVAE or HierarchicalVAE"
                )
            vae.upward[0][0].adapt_inputs(data)
            vae.likelihood.adapt_outputs(data)
        return vae
