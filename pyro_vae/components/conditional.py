"""The one contract of every trainable part: a module that returns a Pyro distribution.

A *family* says how raw, unconstrained numbers become a distribution over an event, and how many
of them it needs. A *conditional* is a network followed by a family,

    context -> family(offset + network(context)),

and without a context the offset alone is learned: a prior with free parameters. One contract
serves every role: p(z) takes no context, p(x | z) takes z, q(z | x) takes x.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

__all__ = ["Automatic", "Conditional", "Distribution", "Family", "Network", "Shape", "positive"]

Shape = tuple[int, ...]
Distribution: TypeAlias = TorchDistributionMixin
Network = Callable[[Shape, Shape], nn.Module]
"""Builds a module from ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""

_SOFTPLUS_INVERSE_OF_ONE = math.log(math.e - 1.0)


def positive(raw: Tensor, *, floor: float = 1e-5) -> Tensor:
    r"""Map real numbers to positive ones, zero to (almost exactly) one.

    .. math:: \mathrm{softplus}(r + \log(e - 1)) + \epsilon

    Linear above and bounded away from zero below, so that neither value nor gradient overflows
    in float32, as ``exp`` does from raw numbers of 50 on.
    """
    return nn.functional.softplus(raw + _SOFTPLUS_INVERSE_OF_ONE) + floor


class Family(nn.Module):
    """How ``raw_shape`` unconstrained numbers become a distribution over ``event_shape``.

    A leaf sets the two shapes and defines ``forward``; ``raw_at`` and ``meet`` are optional.
    """

    event_shape: Shape
    raw_shape: Shape

    def __init__(self, event_shape: Shape, raw_shape: Shape) -> None:
        super().__init__()
        self.event_shape = _checked_shape("event_shape", event_shape)
        self.raw_shape = tuple(raw_shape)

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution whose raw parameters are ``raw``, ``[*batch, *raw_shape]``."""
        raise NotImplementedError

    def raw_at(self, mean: Tensor) -> Tensor | None:
        """Return raw numbers whose distribution has about this mean; None where none is known."""
        return None

    def meet(self, posterior: Conditional | None, data: Tensor | None) -> None:
        """Take what the family needs beyond its shapes; nothing, unless a leaf says otherwise.

        ``assemble`` calls it once, before the family is used: p(z)'s with q(z | x), and
        p(x | z)'s with None.

        Args:
            posterior: The model's q(z | x). Keep it where its parameters are not registered a
                second time, such as in a tuple.
            data: Observations, ``[N, *data_shape]`` in floating point; None where none are known.
        """

    def extra_repr(self) -> str:
        """Show the event's shape."""
        return f"event_shape={self.event_shape}"


class Conditional(PyroModule):
    r"""A network followed by a family: :math:`c \mapsto \mathrm{family}(b + \mathrm{network}(c))`.

    The network's output size comes from the family, so swapping a family never means editing a
    network. Without a ``network`` the offset :math:`b` alone is learned, and no context is taken.

    Args:
        family: How raw numbers become a distribution.
        context_shape: The shape of one context.
        network: Builds the network from ``(context_shape, family.raw_shape)``.

    Raises:
        ValueError: If only one of ``context_shape`` and ``network`` is given.
    """

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
        self.family = family
        self.context_shape = None
        self.offset = nn.Parameter(torch.zeros(family.raw_shape))
        self.network = None
        if network is not None and context_shape is not None:
            self.context_shape = _checked_shape("context_shape", context_shape)
            self.network = network(self.context_shape, family.raw_shape)

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution given ``context``, ``[*batch, *context_shape]``."""
        if self.network is None:
            return self.family(self.offset)
        if context is None:
            raise ValueError("this Conditional has a network: call it with a context")
        return self.family(self.offset + self.network(context))

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Set the offset so that the distribution starts near ``mean``, ``event_shape``.

        Training then starts from the data's marginals instead of learning them first. Families
        that know no such offset are left as they are.
        """
        raw = self.family.raw_at(mean.to(self.offset))
        if raw is not None:
            self.offset.copy_(raw)


class Automatic(Family):
    """The family of any Pyro distribution, from its ``arg_constraints``.

    Every tensor parameter that is not given as a constant is read from the raw numbers, through
    a softplus where it must be positive and ``transform_to`` of its constraint elsewhere.
    Where a distribution offers several parameterisations, ``logits`` is taken before ``probs``
    and ``scale_tril`` before the other forms of a covariance.

    Args:
        event_shape: The shape of one event.
        distribution: A class of ``pyro.distributions``, or its name.
        num_categories: How many categories, for distributions over integers 0..K-1.
        constants: Arguments that are fixed, such as ``total_count=16`` or ``scale=0.1``.

    Raises:
        ValueError: If the distribution is unknown, has no tensor parameters, or its event cannot
            have this shape.
    """

    def __init__(
        self,
        event_shape: Shape,
        distribution: str | type,
        *,
        num_categories: int | None = None,
        **constants: Any,
    ) -> None:
        shape = _checked_shape("event_shape", event_shape)
        chosen = _distribution_class(distribution)
        free = _free_parameters(chosen, constants)
        links = {name: _link(chosen, name, constraint) for name, constraint in free.items()}
        layout, event_dim = _fit_layout(chosen, shape, free, links, num_categories, constants)
        super().__init__(shape, layout.raw_shape)
        self.distribution = chosen
        self.constants = constants
        self._links = links
        self._layout = layout
        self._reinterpreted = len(shape) - event_dim

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution whose raw parameters are ``raw``, ``[*batch, *raw_shape]``."""
        if raw is None:
            raise ValueError(f"{self.distribution.__name__} needs its raw parameters")
        parameters = self._layout.parameters(raw, self._links)
        return self.distribution(**parameters, **self.constants).to_event(self._reinterpreted)

    def extra_repr(self) -> str:
        """Show the distribution, the event's shape and the constants."""
        fixed = "".join(f", {name}={value}" for name, value in self.constants.items())
        return f"{self.distribution.__name__}, event_shape={self.event_shape}{fixed}"


class _Layout:
    """Where each parameter's raw numbers lie in one tensor.

    Elementwise families keep ``[K, *event_shape]``: the K numbers of a pixel stand in a leading
    axis, as channels do, so that a convolution can produce them. Others are one flat vector.
    """

    def __init__(self, raw_shapes: dict[str, Shape], event_shape: Shape) -> None:
        elementwise = all(raw[: len(event_shape)] == event_shape for raw in raw_shapes.values())
        self.event_shape = event_shape = event_shape if elementwise else ()
        self.trailing = {n: s[len(event_shape) :] for n, s in raw_shapes.items()}
        self.sizes = {n: math.prod(s) for n, s in self.trailing.items()}
        self.raw_shape = (sum(self.sizes.values()), *event_shape)

    def split(self, raw: Tensor) -> dict[str, Tensor]:
        axis = -1 - len(self.event_shape)
        pieces = raw.split(list(self.sizes.values()), dim=axis)
        return {
            name: piece.movedim(axis, -1).unflatten(-1, trailing)
            if trailing
            else piece.squeeze(axis)
            for (name, trailing), piece in zip(self.trailing.items(), pieces, strict=True)
        }

    def parameters(self, raw: Tensor, links: Any) -> dict[str, Tensor]:
        return {name: links[name](part) for name, part in self.split(raw).items()}


class _SoftplusLink(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return positive(raw)

    def inverse_shape(self, shape: Shape) -> Shape:
        return shape


class _TransformLink(nn.Module):
    def __init__(self, constraint: constraints.Constraint) -> None:
        super().__init__()
        self.transform = transform_to(constraint)

    def forward(self, raw: Tensor) -> Tensor:
        return self.transform(raw)

    def inverse_shape(self, shape: Shape) -> Shape:
        return tuple(self.transform.inverse_shape(torch.Size(shape)))


def _link(distribution: Any, name: str, constraint: constraints.Constraint) -> nn.Module:
    base = constraint
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    lower = getattr(base, "lower_bound", None)
    half_line = (constraints.greater_than, constraints.greater_than_eq)
    if base is constraints.nonnegative or (
        isinstance(base, half_line) and isinstance(lower, (int, float)) and lower == 0
    ):
        return _SoftplusLink()
    try:
        return _TransformLink(constraint)
    except NotImplementedError:
        raise ValueError(
            f"{distribution.__name__}: no transform leads from real numbers to {name!r} "
            f"({constraint}): give it as a constant, {name}=..., or write a Family"
        ) from None


def _distribution_class(distribution: str | type) -> Any:
    if not isinstance(distribution, str):
        return distribution
    found = getattr(dist, distribution, None)
    if not (inspect.isclass(found) and issubclass(found, dist.Distribution)):
        raise ValueError(f"pyro.distributions has no distribution named {distribution!r}")
    return found


_ALTERNATIVES = (
    ("logits", "probs"),
    ("gate_logits", "gate"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
)


def _free_parameters(
    distribution: Any, constants: dict[str, Any]
) -> dict[str, constraints.Constraint]:
    arguments = inspect.signature(distribution.__init__).parameters
    table = getattr(distribution, "arg_constraints", None)
    if not isinstance(table, dict):
        raise ValueError(
            f"{distribution.__name__} does not declare parameters of a fixed range in "
            "arg_constraints: write a Family"
        )
    unknown = [name for name in constants if name not in arguments]
    if unknown:
        raise ValueError(
            f"{distribution.__name__} has no argument {unknown[0]!r}: its arguments are "
            f"{', '.join(list(arguments)[1:])}"
        )
    excluded = set(constants)
    for group in _ALTERNATIVES:
        offered = [name for name in group if name in table and name in arguments]
        chosen = next((name for name in offered if name in constants), (offered or [""])[0])
        excluded |= set(offered) - {chosen}
    free = {n: c for n, c in table.items() if n in arguments and n not in excluded}
    dependent = [n for n, c in free.items() if constraints.is_dependent(c)]
    if dependent:
        raise ValueError(
            f"{distribution.__name__} does not say which values {dependent[0]!r} may take: give it "
            f"as a constant, {dependent[0]}=..., or write a Family"
        )
    discrete = [name for name, constraint in free.items() if constraint.is_discrete]
    if discrete:
        raise ValueError(
            f"{distribution.__name__} has the integer parameter {discrete[0]!r}, which cannot be "
            f"learned: give it as a constant, {discrete[0]}=..."
        )
    if not free:
        raise ValueError(f"{distribution.__name__} has no free tensor parameter")
    return free


def _fit_layout(
    distribution: Any,
    shape: Shape,
    free: dict[str, constraints.Constraint],
    links: dict[str, Any],
    num_categories: int | None,
    constants: dict[str, Any],
) -> tuple[_Layout, int]:
    """Find how many of the last axes are the distribution's own event, by building one of each."""
    reasons = []
    for event_dim in range(len(shape) + 1):
        try:
            sizes = {
                name: _parameter_shape(constraint.event_dim, shape, event_dim, num_categories)
                for name, constraint in free.items()
            }
            raw_shapes = {name: links[name].inverse_shape(size) for name, size in sizes.items()}
            layout = _Layout(raw_shapes, shape)
            _check_example(distribution, layout, links, constants, shape, event_dim)
        except (ValueError, TypeError, RuntimeError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            reasons.append(f"with {event_dim} event dimension(s): {reason}")
        else:
            return layout, event_dim
    raise ValueError(
        f"{distribution.__name__} cannot be a family over event_shape={shape}, "
        f"{'; '.join(reasons)}: give what is missing as a constant, or write a Family"
    )


def _parameter_shape(
    parameter_dim: int, shape: Shape, event_dim: int, num_categories: int | None
) -> Shape:
    batch, event = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
    if parameter_dim <= event_dim:
        return (*batch, *event[:parameter_dim])
    if event_dim:
        return (*shape, *[event[-1]] * (parameter_dim - event_dim))
    if num_categories is None:
        raise ValueError("a parameter holds one number per category, so num_categories is needed")
    return (*shape, *[num_categories] * parameter_dim)


def _check_example(
    distribution: Any,
    layout: _Layout,
    links: dict[str, Any],
    constants: dict[str, Any],
    shape: Shape,
    event_dim: int,
) -> None:
    raw = torch.zeros(layout.raw_shape, requires_grad=True)
    example = distribution(**layout.parameters(raw, links), **constants)
    found = tuple(example.batch_shape + example.event_shape)
    if found != shape or len(example.event_shape) != event_dim:
        raise ValueError(f"one draw has shape {found}")
    support = example.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds = [bound for bound in vars(support).values() if isinstance(bound, Tensor)]
    if any(bound.requires_grad for bound in bounds):
        raise ValueError("its support moves with its parameters, so data would fall outside")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if not bool(example.log_prob(example.sample()).isfinite().all()):
            raise ValueError("its own draws have no finite log-density")


def _checked_shape(name: str, shape: Shape) -> Shape:
    sizes = tuple(shape)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"{name}={shape!r}: expected a tuple of positive integers such as (40,)")
    return sizes
