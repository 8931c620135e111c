"""Every distribution of Pyro's as a family, from its ``arg_constraints``.

``Automatic.of(dist.Laplace)`` is a class of families, and so is ``pyro_vae.components.automatic.
Laplace``: any name of ``pyro.distributions`` will do, which is how the command line finds them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import (
    Distribution,
    Family,
    Shape,
    checked_shape,
)
from pyro_vae.components.networks import Standardize
from pyro_vae.components.scales import mean_of
from pyro_vae.distributions import inverse_softplus, positive, raw_at_scale

__all__ = ["Automatic", "class_path", "distribution_names"]

# A mean at the edge of its range must not start a raw number at infinity.
_SMALLEST = 1e-3
_LARGEST_ODDS = 15.0


class Automatic(Family):
    """The family of any Pyro distribution, from its ``arg_constraints``.

    Every tensor parameter that is not given as a constant is read from the raw numbers, through
    a softplus where it must be positive and ``transform_to`` of its constraint elsewhere; the
    logits of negative binomials level off at 15.
    Where a distribution offers several parameterisations, ``logits`` is taken before ``probs``
    and ``scale_tril`` before the other forms of a covariance. Distributions of one location, rate
    or logit can start at the mean of data.

    Args:
        event_shape: The shape of one event.
        distribution: A class of ``pyro.distributions``, or its name.
        num_categories: How many categories, for distributions over integers 0..K-1.
        constants: Arguments that are fixed, such as ``total_count=16``, or ``scale=0.1`` in the
            data's own units.

    Raises:
        ValueError: If the distribution is unknown, has no tensor parameters, or its event cannot
            have this shape.
    """

    data = "any kind, as Pyro's distribution says"
    example: ClassVar = {"distribution": "Laplace"}

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        distribution: str | type,
        *,
        num_categories: int | None = None,
        **constants: Any,
    ) -> None:
        shape = checked_shape("event_shape", event_shape)
        chosen = _distribution_class(distribution)
        free = _free_parameters(chosen, constants)
        links = {name: _link(chosen, name, constraint) for name, constraint in free.items()}
        layout, event_dim = _fit_layout(chosen, shape, free, links, num_categories, constants)
        super().__init__(shape, raw_shape=layout.raw_shape)
        self.distribution = chosen
        self.constants = constants
        self._links: dict[str, Any] = links
        self._layout = layout
        self._reinterpreted = len(shape) - event_dim
        self._measures = {name: _measure(chosen, name) for name in constants}
        self._has_units = any(name not in ("", "unknown") for name in self._measures.values())
        if self._has_units:
            self.constant_units = Standardize.unknown(shape)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution whose raw parameters are ``raw``, ``[*batch, *raw_shape]``."""
        parameters = self._layout.parameters(raw, self._links)
        constants = self._constants_in_units()
        return self.distribution(**parameters, **constants).to_event(self._reinterpreted)

    def measured(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Take constants into units of the data; where one has none that are known, take none."""
        if "unknown" in self._measures.values():
            return torch.zeros_like(loc), torch.ones_like(scale)
        if self._has_units:
            self.constant_units.take(loc, scale)
        return loc, scale

    def _constants_in_units(self) -> dict[str, Any]:
        if not (self._has_units and self.constant_units.known):
            return self.constants
        loc, scale = self.constant_units.loc, self.constant_units.scale
        return {
            name: _IN_UNITS[measure](self.constants[name], loc, scale) if measure else constant
            for (name, constant), measure in zip(
                self.constants.items(), self._measures.values(), strict=True
            )
        }

    def raw_from(self, data: Tensor) -> Tensor | None:
        """Return raw numbers of the data's mean where a single parameter moves it, else None."""
        mean = mean_of(data)
        start = _start(self, mean)
        if start is None:
            return None
        name, value = start
        raw = torch.zeros(self.raw_shape, dtype=mean.dtype, device=mean.device)
        self._layout.split(raw)[name].copy_(self._links[name].inverse(value))
        return raw

    counts_up_to_it = False
    """Whether ``total_count`` is the largest value, as a Binomial's is."""

    @staticmethod
    def of(distribution: type, **constants: Any) -> Callable[..., Automatic]:
        """Return the class of a distribution's families, which takes constants as arguments.

        Args:
            distribution: A class of ``pyro.distributions``, or one like them.
            constants: Arguments that are fixed.
        """
        families = _class_of(distribution)
        return functools.partial(families, **constants) if constants else families

    def extra_repr(self) -> str:
        """Show the distribution, the event's shape and the constants."""
        name = f"{self.distribution.__name__}, " if type(self) is Automatic else ""
        fixed = "".join(f", {name}={value}" for name, value in self.constants.items())
        return f"{name}event_shape={self.event_shape}{fixed}"


@functools.cache
def distribution_names() -> tuple[str, ...]:
    """Return the names of Pyro's distributions that declare their parameters."""
    return tuple(
        name
        for name, found in sorted(vars(dist).items())
        if inspect.isclass(found)
        and issubclass(found, dist.Distribution)
        and isinstance(getattr(found, "arg_constraints", None), dict)
    )


def class_path(name: str) -> str:
    """Return the import path of the class of a distribution's families."""
    return f"{__name__}.{name}"


def __getattr__(name: str) -> type[Automatic]:
    if name.startswith("_") or name not in distribution_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class_of(getattr(dist, name))


@functools.cache
def _class_of(distribution: Any) -> type[Automatic]:
    """Make the class of a distribution's families, with its arguments in the signature."""
    kind = inspect.Parameter
    keyword = functools.partial(kind, kind=kind.KEYWORD_ONLY, default=None)
    names = [name for name in _arguments(distribution) if name != "validate_args"]

    def __init__(self: Automatic, event_shape: Shape, **constants: Any) -> None:
        given = {name: value for name, value in constants.items() if value is not None}
        Automatic.__init__(self, event_shape, distribution, **given)

    signature = inspect.Signature(
        [
            kind("self", kind.POSITIONAL_OR_KEYWORD),
            kind("event_shape", kind.POSITIONAL_OR_KEYWORD, annotation=Shape),
            *(keyword(name, annotation=int | float | bool | None) for name in names),
            keyword("num_categories", annotation=int | None),
        ]
    )
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    line = f"Pyro's {distribution.__name__}, from raw numbers; its arguments are fixed where given."
    body = {"__init__": __init__, "__module__": __name__, "__doc__": line}
    # A negative binomial's is a real number, and a multinomial's the total of a row.
    count = getattr(distribution, "arg_constraints", {}).get("total_count")
    many = "Multinomial" in distribution.__name__
    body["counts_up_to_it"] = count is constraints.nonnegative_integer and not many
    return type(distribution.__name__, (Automatic,), body)


def _arguments(distribution: Any) -> list[str]:
    parameters = list(inspect.signature(distribution.__init__).parameters.values())[1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind not in variable]


def _start(family: Automatic, mean: Tensor) -> tuple[str, Tensor] | None:
    """Return the parameter that gives the distribution this mean, the others at raw zeros."""
    name, free = family.distribution.__name__, family._layout.trailing
    constants = family.constants
    if name in ("Bernoulli", "Binomial") and "logits" in free:
        share = mean / constants.get("total_count", 1)
        return "logits", share.clamp(_SMALLEST, 1 - _SMALLEST).logit()
    if name.startswith("ZeroInflated"):
        gate = constants.get("gate", 0.5 if "gate_logits" in free else None)
        if gate is None:
            return None
        mean = mean / (1 - gate)
    if name in ("Poisson", "ZeroInflatedPoisson") and "rate" in free:
        return "rate", mean
    if name in ("NegativeBinomial", "ZeroInflatedNegativeBinomial") and "logits" in free:
        return "logits", (mean / constants.get("total_count", 1.0)).clamp(min=_SMALLEST).log()
    if name == "Geometric" and "logits" in free:
        return "logits", -mean.clamp(min=_SMALLEST).log()
    if name in _LOCATED and "loc" in free:
        return "loc", mean
    return None


# Symmetric about their location, whatever the other parameters are.
_LOCATED = ("Cauchy", "Laplace", "Logistic", "Normal", "SoftLaplace", "StudentT")

# How a constant in the data's own units is said in others, t = (x - loc) / scale.
_IN_UNITS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "place": lambda constant, loc, scale: (constant - loc) / scale,
    "length": lambda constant, loc, scale: constant / scale,
    "inverse length": lambda constant, loc, scale: constant * scale,
    "logarithm": lambda constant, loc, scale: constant - scale.log(),
}
# What a constant measures; of other distributions' constants, or by other names, it is not known.
_MEASURES: dict[str, dict[str, str]] = {
    **{
        name: {"loc": "place", "scale": "length"}
        for name in (*_LOCATED, "AsymmetricLaplace", "Gumbel")
    },
    **{name: {"scale": "length"} for name in ("HalfCauchy", "HalfNormal", "Weibull")},
    "Exponential": {"rate": "inverse length"},
    "Gamma": {"rate": "inverse length"},
    "InverseGamma": {"rate": "length"},
    "LogNormal": {"loc": "logarithm", "scale": ""},
}
_PURE_NUMBERS = ("asymmetry", "concentration", "df", "df1", "df2", "softness", "validate_args")


def _measure(distribution: Any, name: str) -> str:
    """Return what a constant measures, in the data's own units; nothing if it has none."""
    known = _MEASURES.get(distribution.__name__, {})
    return known.get(name, "" if name in _PURE_NUMBERS else "unknown")


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

    def inverse(self, value: Tensor) -> Tensor:
        return raw_at_scale(value)

    def inverse_shape(self, shape: Shape) -> Shape:
        return shape


class _OddsLink(nn.Module):
    """Logits of at most 15: beyond, the odds of a negative binomial's trials are infinite."""

    def forward(self, raw: Tensor) -> Tensor:
        return _LARGEST_ODDS - nn.functional.softplus(_LARGEST_ODDS - raw)

    def inverse(self, value: Tensor) -> Tensor:
        return _LARGEST_ODDS - inverse_softplus(_LARGEST_ODDS - value)

    def inverse_shape(self, shape: Shape) -> Shape:
        return shape


class _TransformLink(nn.Module):
    def __init__(self, constraint: constraints.Constraint) -> None:
        super().__init__()
        self.transform = transform_to(constraint)

    def forward(self, raw: Tensor) -> Tensor:
        return self.transform(raw)

    def inverse(self, value: Tensor) -> Tensor:
        return self.transform.inv(value)

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
    if name == "logits" and distribution.__name__.endswith("NegativeBinomial"):
        return _OddsLink()
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
        near = difflib.get_close_matches(distribution, distribution_names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"pyro.distributions has no distribution named {distribution!r}{hint}")
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
    try:
        example.expand((2, *example.batch_shape))
    except NotImplementedError:  # a fault of Pyro's SoftAsymmetricLaplace
        raise ValueError("it cannot be expanded over the data of a plate") from None
    support = example.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds = [bound for bound in vars(support).values() if isinstance(bound, Tensor)]
    if any(bound.requires_grad for bound in bounds):
        raise ValueError("its support moves with its parameters, so data would fall outside")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if not bool(example.log_prob(example.sample()).isfinite().all()):
            raise ValueError("its own draws have no finite log-density")
