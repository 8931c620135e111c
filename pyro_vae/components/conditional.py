"""The contract of every trainable part: a module that returns a Pyro distribution.

A *family* maps raw, unconstrained numbers to a distribution over an event, and says how many of
them it takes and how they start from data. A *conditional* is a network followed by a family,

    context -> family(offset + network(context)),

and without a context the offset alone is learned: a prior with free parameters. One contract
serves every role: p(z) takes no context, p(x | z) takes z, q(z | x) takes x.

A conditional that has met data works in their *units*: contexts are standardised before the network
sees them, and raw numbers are those of the distribution of ``t = (x - loc) / scale``, so that no
factor or offset of the data changes what is learned. The density is that of x, Jacobian included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyro_vae.arguments import built, shown
from pyro_vae.components.networks import Standardize
from pyro_vae.components.units import units_of
from pyro_vae.distributions import in_units

__all__ = [
    "Conditional",
    "Distribution",
    "Family",
    "Network",
    "Shape",
    "checked_shape",
    "unbound",
]

Shape = tuple[int, ...]
Distribution: TypeAlias = TorchDistributionMixin
Network = Callable[[Shape, Shape], nn.Module]
"""Builds a module from ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""


def unbound(family: Family, raw: Tensor) -> tuple[Tensor, ...]:
    """Return the ``[*batch, *event_shape]`` parts of an elementwise family's raw numbers."""
    return raw.unbind(-1 - len(family.event_shape))


_NO_NUMBERS = torch.zeros(0)


class Family(nn.Module):
    """How ``raw_shape`` unconstrained numbers become a distribution over ``event_shape``.

    A leaf sets the two shapes and defines ``forward(raw)``; ``raw_from(data)`` says where raw
    numbers start, ``measured`` what constants are in units of the data, and
    ``start_from_posterior`` serves a prior that is made of q(z | x). All but the constants of
    ``measured`` is in units of the data, which a ``Conditional`` takes care of: bounds such as the
    smallest scale are relative to how the data are spread.
    """

    event_shape: Shape
    raw_shape: Shape
    of_data: tuple[str, ...] = ()
    """Attributes that data decide, which are no settings of the family."""
    roles: ClassVar[tuple[str, ...]] = ("prior", "likelihood", "posterior")
    """What it may be, first where it is at home. This and the next four, a class states for itself
    alone; networks, models and objectives state them as well where there is something to say."""
    data: ClassVar[str] = "real numbers"
    """What it is a likelihood of."""
    example: ClassVar[dict[str, Any]] = {}
    """Arguments that it cannot be built without, or is quicker with."""
    synonyms: ClassVar[tuple[str, ...]] = ()
    """Other names of the very part."""
    near: ClassVar[dict[str, str]] = {}
    """Names of what is nearly the part, and what to take for it."""

    def __init__(self, event_shape: Shape, raw_shape: Shape) -> None:
        super().__init__()
        self.event_shape = checked_shape("event_shape", event_shape)
        self.raw_shape = tuple(raw_shape)

    def __call__(self, raw: Tensor | None = None) -> Any:
        """Return the distribution of raw numbers; without any, of a family that takes none.

        While ``torch.export`` looks on, values are not checked.

        Raises:
            ValueError: If the family needs raw numbers and is given none.
        """
        if raw is None:
            if not self.is_fixed:
                raise ValueError(
                    f"{type(self).__name__} needs its raw parameters, {self.raw_shape}: call "
                    "Conditional(family), which learns them"
                )
            raw = _NO_NUMBERS
        if not torch.compiler.is_exporting():
            return super().__call__(raw)
        with pyro.validation_enabled(False):
            return _unchecked(super().__call__(raw))

    @property
    def is_fixed(self) -> bool:
        """Whether there are no raw numbers: it is one distribution, such as N(0, I)."""
        return 0 in self.raw_shape

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution whose raw parameters are ``raw``, ``[*batch, *raw_shape]``."""
        raise NotImplementedError

    def raw_from(self, data: Tensor) -> Tensor | None:
        """Return raw numbers whose distribution is about that of data; None where none is known.

        What else of the family starts at data, such as a shared scale, is set.

        Args:
            data: Observations, ``[N, *event_shape]`` in floating point and in their own units,
                ``(x - loc) / scale``; NaN is missing. A single row says nothing of their spread.
        """
        return None

    def start_from_posterior(self, posterior: Conditional, data: Tensor | None) -> None:
        """Take q(z | x), where this is a prior that is made of it; other families do nothing.

        Args:
            posterior: The model's q(z | x). Keep it where its parameters are not registered a
                second time, such as in a tuple.
            data: What it is given, ``[N, *data_shape]`` in floating point; None: not known.
        """

    def measured(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the units that raw numbers are in, given those of the data.

        A family with constants in the data's own units takes these into account, or, where it
        cannot, returns zeros and ones.

        Args:
            loc: What is zero in units of the data, ``event_shape``.
            scale: How long one of their units is, ``event_shape``.
        """
        return loc, scale

    def extra_repr(self) -> str:
        """Show the event's shape."""
        return f"event_shape={self.event_shape}"


def _unchecked(distribution: Distribution) -> Distribution:
    """Let a distribution, and those it is made of, score whatever values they are given."""
    distribution._validate_args = False
    for part in tree_leaves(list(vars(distribution).values())):
        if isinstance(part, torch.distributions.Distribution):
            _unchecked(part)
    return distribution


class Conditional(PyroModule):
    r"""A network followed by a family: :math:`c \mapsto \mathrm{family}(b + \mathrm{network}(c))`.

    The network's output size comes from the family, so swapping a family never means editing a
    network. Without a ``network`` the offset :math:`b` alone is learned, and no context is taken.
    A network with a method ``start_at(raw)`` has an offset of its own, and :math:`b` is zero.

    ``assemble`` and ``fit`` initialise it from the data: q(z | x) by ``adapt_inputs``, p(x | z) by
    ``adapt_outputs``. Until then it takes contexts and raw numbers as they are.

    Args:
        family: How raw numbers become a distribution.
        context_shape: The shape of one context.
        network: Builds the network from ``(context_shape, family.raw_shape)``.

    Attributes:
        inputs: Standardises contexts.
        units: Those of events, of which raw numbers are.

    Raises:
        ValueError: If only one of ``context_shape`` and ``network`` is given, or the family has no
            raw numbers for a network to set.
    """

    offset: Tensor

    def __init__(
        self,
        family: Family,
        *,
        context_shape: Shape | None = None,
        network: Network | None = None,
    ) -> None:
        super().__init__()
        if (context_shape is None) != (network is None):
            raise ValueError(
                "a Conditional takes both context_shape and network, or neither (a learned prior); "
                f"got context_shape={context_shape!r} and network={network!r}"
            )
        if not isinstance(family, Family):
            raise TypeError(
                f"Conditional: family={shown(family)}: expected a Family, such as Normal((784,))"
            )
        if network is not None and family.is_fixed:
            raise ValueError(
                f"Conditional: {type(family).__name__} has no raw numbers for a network to set, "
                "and would be the same for every context: leave context_shape and network out (a "
                "prior), or take another family, such as DiagonalNormal"
            )
        self.family = family
        self.context_shape = None
        if family.is_fixed:
            self.register_buffer("offset", torch.zeros(family.raw_shape), persistent=False)
        else:
            self.offset = nn.Parameter(torch.zeros(family.raw_shape))
        self.units = Standardize.unknown(family.event_shape)
        self.network = None
        if network is not None and context_shape is not None:
            self.context_shape = checked_shape("context_shape", context_shape)
            self.network = built(
                "network", network, nn.Module, self.context_shape, family.raw_shape
            )
            if hasattr(self.network, "start_at"):  # it has an offset of its own
                del self.offset
                self.register_buffer("offset", torch.zeros(family.raw_shape), persistent=False)
            # Symbols are names, which have no mean.
            symbols = getattr(self.network, "reads_symbols", False)
            self.inputs = nn.Identity() if symbols else Standardize.unknown(self.context_shape)
        self._drawn = _sums(self)  # a tensor, and so no setting of the program

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution given ``context``, ``[*batch, *context_shape]``."""
        distribution = self.family(self.raw(context))
        if self.units.known:
            distribution = in_units(distribution, self.units.loc, self.units.scale)
        return _unchecked(distribution) if torch.compiler.is_exporting() else distribution

    def raw(self, context: Tensor | None = None) -> Tensor:
        """Return the family's raw numbers given ``context``, ``[*batch, *raw_shape]``."""
        if self.network is None:
            return self.offset
        if context is None:
            raise ValueError("this Conditional has a network: call it with a context")
        numbers = self.network(self.inputs(context))
        shape = self.family.raw_shape
        if not (isinstance(numbers, Tensor) and numbers.shape[-len(shape) :] == shape):
            raise TypeError(
                f"the network {type(self.network).__name__} returns {_told(numbers)} where "
                f"{type(self.family).__name__} takes one tensor of shape (..., "
                f"{', '.join(map(str, shape))}): return its raw numbers, location and scale and "
                "all, as one tensor of that shape"
            )
        raw: Tensor = self.offset + numbers
        return raw

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Set the offset so that the distribution starts near ``mean``, ``event_shape``.

        Training then starts from the data's marginals instead of learning them first. Families
        that know no such offset are left as they are.
        """
        self._start_at(self.units(mean.to(self.offset).unsqueeze(0)))

    def _start_at(self, seen: Tensor) -> None:
        raw = self.family.raw_from(seen)
        if raw is None:
            return
        # Of numbers that a family's formula for its start has no room for.
        start = torch.where(raw.isfinite(), raw, self.offset)
        own: Any = getattr(self.network, "start_at", self.offset.copy_)
        own(start)

    def adapt_inputs(self, x: Tensor) -> None:
        """Standardise contexts from now on as ``x``, ``[N, *context_shape]``; symbols stay."""
        inputs = getattr(self, "inputs", None)
        if isinstance(inputs, Standardize):
            inputs.adapt_inputs(x)

    @torch.no_grad()
    def adapt_outputs(self, x: Tensor) -> None:
        """Take the units of ``x``, ``[N, *event_shape]``, and start where the data are."""
        units = units_of(self.family(self.offset), x)
        if units is not None:
            self.units.take(*self.family.measured(*units))
        self._start_at(self.units(x))

    @property
    def is_new(self) -> bool:
        """Whether no data have been met and all parameters are as they were drawn."""
        return not self.units.known and torch.equal(_sums(self), self._drawn)


def _sums(module: nn.Module) -> Tensor:
    """Return the sum of each parameter, which training and loading of weights change."""
    known = [p for p in module.parameters() if not nn.parameter.is_lazy(p) and not p.is_meta]
    sums = [p.detach().cpu().double().sum().item() for p in known]
    return torch.tensor(sums, dtype=torch.float64)


def _told(numbers: Any) -> str:
    parts = numbers if isinstance(numbers, tuple | list) else ()
    several = f"a {type(numbers).__name__} of {len(parts)}: " if parts else ""
    return several + (", ".join(map(shown, parts)) or shown(numbers))


def checked_shape(name: str, shape: Shape) -> Shape:
    """Return the shape as a tuple; ValueError where it is none of at least one element."""
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if not sizes or not whole or min(sizes) < 1:
        raise ValueError(f"{name}={shape!r}: expected a tuple of positive integers such as (40,)")
    return sizes
