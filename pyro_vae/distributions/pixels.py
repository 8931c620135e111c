"""Images whose pixels are drawn one after the other, each given those before it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.drawing import Drawn

__all__ = ["AutoregressivePixels", "Levels"]


class Levels(Protocol):
    """What P numbers of each pixel say of the levels 0..n of its C channels."""

    num_channels: int
    largest: int
    in_order: bool
    """Whether those of a channel depend on the channels before it at the same pixel."""

    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        """Return the log-probability of images, ``[rows]``.

        Args:
            raw: ``[rows, P, height, width]``.
            value: ``[rows, C, height, width]``, whole numbers in floating point.
        """

    def logits(self, raw: Tensor, before: Tensor) -> Tensor:
        """Return the logits of the next channel's levels at a pixel, ``[rows, n + 1]``.

        Args:
            raw: ``[rows, P]``.
            before: The channels before it, ``[rows, 0 to C - 1]``.
        """


class AutoregressivePixels(Drawn, TorchDistribution):
    r"""Images of the integers 0..n, each given those before it in the order of reading.

    .. math:: p(x) = \prod_i \prod_c p(x_{ic} \mid x_{i, <c}, x_{<i}, h)

    A probability is one pass of the network. A draw goes from pixel to pixel, and computes of each
    what is new: the rows above once for each row, and of the row what its last column adds.

    Args:
        network: Says P numbers of each pixel, given images and ``context``; ``network.walk`` says
            them pixel by pixel.
        levels: What these say of the levels.
        context: h, ``[*batch, num_context, height, width]``.
        event_shape: ``(C, height, width)``, or ``(height, width)`` of one channel.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        network: Any,
        levels: Levels,
        context: Tensor,
        event_shape: tuple[int, ...],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self._network, self._levels, self._context = network, levels, context
        super().__init__(context.shape[:-3], torch.Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        """The values that it may take."""
        largest = self._levels.largest
        numbers = constraints.boolean if largest == 1 else constraints.integer_interval(0, largest)
        return constraints.independent(numbers, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressivePixels:
        """Return the same distribution with this batch shape."""
        context = self._context.expand(*batch_shape, *self._context.shape[-3:])
        wide = AutoregressivePixels(
            self._network, self._levels, context, self.event_shape, validate_args=False
        )
        return wide.drawn_with(self.rule)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability, ``[*batch]``, all pixels at once; minus infinity outside."""
        if self._validate_args:
            self._validate_sample(value)
        batch = value.shape[: value.dim() - self.event_dim]
        shape = torch.broadcast_shapes(batch, self.batch_shape)
        images = self._images(value.to(self._context.dtype).expand(*shape, *self.event_shape))
        known = images.nan_to_num(0.0).round().clamp(0, self._levels.largest)
        raw = self._network(self._scaled(known), self._contexts(shape))
        log_p = self._levels.log_prob(raw, known)
        inside = (known == images).flatten(1).all(1)
        return torch.where(inside, log_p, -torch.inf).reshape(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients, pixel by pixel: integers, in the type of the context."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - self.event_dim]
        walk = self._network.walk(self._contexts(batch))
        images = self._images(self._context.new_zeros(shape))
        above = None
        for number, row in enumerate(images.unbind(2)):
            walk.start_row(number, above)
            for column, place in enumerate(row.unbind(2)):
                place.copy_(self._drawn_pixel(walk, column))
                walk.put(self._scaled(place))
            above = self._scaled(row)
        return images.reshape(shape)

    def _drawn_pixel(self, walk: Any, column: int) -> Tensor:
        """Draw the channels of a pixel, ``[rows, C]``."""
        drawn = self._context.new_zeros(walk.num_rows, 0)
        num_channels = self._levels.num_channels
        for channel in range(num_channels):
            if channel == 0 or self._levels.in_order:
                seen = torch.nn.functional.pad(self._scaled(drawn), (0, num_channels - channel))
                raw = walk.at(column, seen)
            logits = self.rule(self._levels.logits(raw, drawn))
            level = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
            drawn = torch.cat([drawn, level.unsqueeze(1).to(drawn.dtype)], 1)
        return drawn

    def _images(self, value: Tensor) -> Tensor:
        """Return ``[*batch, *event_shape]`` as ``[rows, C, height, width]``."""
        return value.reshape(-1, self._levels.num_channels, *self.event_shape[-2:])

    def _contexts(self, batch: torch.Size) -> Tensor:
        maps = self._context.shape[-3:]
        return self._context.expand(*batch, *maps).reshape(-1, *maps)

    def _scaled(self, value: Tensor) -> Tensor:
        """Return levels as numbers between -1 and 1, as the network takes them."""
        return 2 * value / self._levels.largest - 1
