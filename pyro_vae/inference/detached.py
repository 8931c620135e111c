"""Split gradients: directly through a density's parameters, or through its samples.

``detached`` leaves of a density only the way through the samples. ``split_terms`` is the table of
a program whose samples were cut out of the graph, so that an objective can send one gradient to
the model, another to the guide's density, and a third through the samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from pyro.distributions import Distribution, TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import ComposeTransform, Independent, Transform, TransformedDistribution
from torch.distributions.transforms import _InverseTransform

from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import LatentSite, SiteTerms, _per_datum, site_terms

__all__ = ["Detached", "detached", "reached", "split_terms", "through_samples"]

_DRAWN = "pyro_vae.drawn"


def detached(distribution: Any) -> Detached:
    r"""Return the distribution with a density that is differentiable in the value alone.

    .. math:: \nabla \log q_{\bar\phi}(z_\phi) = \nabla_z \log q(z)\, \nabla z_\phi,
        \qquad \bar\phi = \phi

    Any continuous distribution of torch or Pyro will do, mixtures, transformed, masked and
    expanded ones included. Samples are the distribution's own, with their gradients. A flow whose
    inverse is costly or unknown (autoregressive, planar) is not inverted: for the value it drew
    last, its slope comes from the Jacobian of the forward pass, one backward pass for each
    dimension. Only first derivatives are right.

    Args:
        distribution: The distribution, of any batch and event shape.

    Raises:
        TypeError: If it is no distribution.
        ValueError: If its values are discrete; or, later, if a flow without an inverse is given
            another value than its last sample.

    References:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
        (Roeder, Wu & Duvenaud, 2017)
        Fast and Unified Path Gradient Estimators for Normalizing Flows
        (Vaitl, Winkler, Richter & Kessel, 2024)
    """
    if not isinstance(distribution, (Distribution, torch.distributions.Distribution)):
        raise TypeError(f"detached({distribution!r}): expected a distribution of torch or Pyro")
    if _is_discrete(distribution):
        raise ValueError(
            f"detached({type(distribution).__name__}): a density over discrete values has no "
            "gradient in them; use a relaxed distribution, or leave this one as it is"
        )
    return Detached(distribution)


class Detached(TorchDistribution):
    """What ``detached`` returns: ``base_dist``, with another gradient of ``log_prob``."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, base_dist: Any) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether samples carry gradients."""
        return bool(self.base_dist.has_rsample)

    @property
    def support(self) -> Any:
        """The values it has."""
        return self.base_dist.support

    def rsample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a sample with the gradients of the distribution's parameters."""
        return self.base_dist.rsample(*args, **kwargs)

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a sample without gradients."""
        return self.base_dist.sample(*args, **kwargs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, ``[*batch_shape]``, differentiable in ``value`` alone."""
        return _log_prob(self, value, value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Detached:
        """Return it with another batch shape."""
        return Detached(self.base_dist.expand(batch_shape))


def split_terms(program: Program, layout: Layout, *args: Any, num_particles: int = 1) -> SiteTerms:
    """Run guide and model with the samples cut out of the graph, and return the table.

    In it, ``log_p`` has gradients in the parameters of the model, ``log_q`` in those of the guide,
    both at given values; ``through_samples`` has those that pass through the values. Call inside
    ``program.running()``; arguments as for ``site_terms``.
    """
    with _Cut():
        return site_terms(program, layout, *args, num_particles=num_particles)


def through_samples(terms: SiteTerms, log_w: Tensor) -> Tensor:
    r"""Return ``log_w`` with the gradients that reach the guide through its samples, and no other.

    .. math:: \frac{\partial \log w}{\partial z} \frac{\partial z}{\partial \phi}

    with z all reparameterised latents together: where the guide draws one given another, the
    derivative of its density with respect to the other counts.

    Args:
        terms: What ``split_terms`` returned.
        log_w: Computed from its log-densities, ``[S, B]``; every entry from its own datum and
            particle.

    References:
        Generalized Doubly Reparameterized Gradient Estimators (Bauer & Mnih, 2021)
    """
    runs = [
        [sites[run] for sites in terms.latents.values() if _DRAWN in sites[run].guide["infer"]]
        for run in range(max(map(len, terms.latents.values())))
    ]
    leaves = [site.guide["value"] for sites in runs for site in sites]
    slopes = iter(
        torch.autograd.grad(log_w.sum(), leaves, retain_graph=True, materialize_grads=True)
    )
    changes = [_change(sites, [next(slopes) for _ in sites]) for sites in runs]
    return log_w.detach() + torch.cat(changes)


def reached(
    program: Program, layout: Layout, parameters: Sequence[Tensor], *args: Any
) -> dict[str, list[bool]]:
    """Say which parameters the model's log p at given values depends on, and the guide's log q.

    By the graph, not by names: what a guide takes from a model's module is of both. Call inside
    ``program.running()``.

    Args:
        program: Whose parameters they are.
        layout: Of the program.
        parameters: What is asked about.
        args: Of model and guide; three rows are enough.

    Returns:
        For "model" and for "guide" whether each parameter takes part.
    """
    terms = split_terms(program, layout, *(arg[:3] for arg in args))
    found = {}
    for part, table in (("model", terms.log_p), ("guide", terms.log_q)):
        total = torch.stack([log_density.sum() for log_density in table.values()]).sum()
        slopes: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if total.requires_grad:
            slopes = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
        found[part] = [slope is not None for slope in slopes]
    return found


def _change(sites: list[LatentSite], slopes: list[Tensor]) -> Tensor:
    """Return zeros, ``[S, B]``, with the gradient of one run's samples along the slopes."""
    total = change = slopes[0].new_zeros(())
    for site, slope in zip(reversed(sites), reversed(slopes), strict=True):
        leaf, drawn = site.guide["value"], site.guide["infer"][_DRAWN]
        if total.requires_grad:
            # What later samples of the guide make of this one.
            (more,) = torch.autograd.grad(total, leaf, retain_graph=True, materialize_grads=True)
            slope = slope + more
        gain = sum_rightmost(slope * (drawn - drawn.detach()), len(site.guide["fn"].event_shape))
        total = total + gain.sum()
        change = change + _per_datum(gain, site.shape, site.nesting)
    return change


class _Cut(Messenger):
    """Put in the place of each reparameterised sample of a guide an independent variable."""

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, drawn = msg["fn"], msg["value"]
        ours = not msg["is_observed"] and not site_is_subsample(msg) and fn.has_rsample
        if not ours or _DRAWN in msg["infer"]:  # the model's replayed sites have it, too
            return
        msg["infer"] = {**msg["infer"], _DRAWN: drawn}
        msg["value"] = _variable(drawn)
        if _holds_a_flow(fn):
            msg["fn"] = _At(fn, drawn)


class _At(TorchDistribution):
    """A flow that knows which sample the values it is asked for are copies of."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, base_dist: Any, drawn: Tensor) -> None:
        self.base_dist, self.drawn = base_dist, drawn
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return True

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def log_prob(self, value: Tensor) -> Tensor:
        return _log_prob(self.base_dist, value, self.drawn)


def _log_prob(fn: Any, value: Tensor, drawn: Tensor) -> Tensor:
    """Return the log-density at ``value``, which has the numbers of ``drawn``, a sample of fn."""
    if isinstance(fn, Detached):
        return _without_parameters(fn.base_dist, value, drawn)
    if isinstance(fn, Independent):
        log_prob = _log_prob(fn.base_dist, value, drawn)
        return sum_rightmost(log_prob, fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution) and fn._mask is not False:
        log_prob = _log_prob(fn.base_dist, value, drawn)
        return log_prob if fn._mask is True else torch.where(fn._mask, log_prob, 0.0)
    if isinstance(fn, ExpandedDistribution):
        log_prob = _log_prob(fn.base_dist, value, drawn)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, fn.batch_shape))
    if _is_flow(fn):
        return _log_prob_of_flow(fn, value, drawn)
    return fn.log_prob(value)


def _without_parameters(fn: Any, value: Tensor, drawn: Tensor) -> Tensor:
    # The partial derivative in the value is one whatever the parameters are made of.
    with torch.enable_grad():
        shape = torch.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape)
        leaf = _variable(value if value.shape == shape else value.expand(shape))
        log_prob = _log_prob(fn, leaf, drawn)
        slope = torch.zeros_like(leaf)
        if log_prob.requires_grad:
            (slope,) = torch.autograd.grad(log_prob.sum(), leaf, materialize_grads=True)
    value = value.expand(shape)
    return _Sloped.apply(value, log_prob.detach(), slope, len(fn.event_shape))


class _Sloped(torch.autograd.Function):
    """Numbers with a given derivative: the slope may be infinite where its factor is zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, number: Tensor, slope: Tensor, event_dim: int) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.event_dim = event_dim
        return number.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (slope,) = ctx.saved_tensors
        gradient = gradients[0].reshape(gradients[0].shape + (1,) * ctx.event_dim)
        return gradient * slope, None, None, None


def _variable(value: Tensor) -> Tensor:
    leaf = value.detach().requires_grad_()
    if hasattr(value, "_unquantize"):
        # Pyro's straight-through samples bring the soft value that their density is of.
        soft: Any = value._unquantize.detach() + (leaf - leaf.detach())
        leaf._unquantize = soft  # type: ignore[attr-defined]
    return leaf


# ------------------------------------------------------------------------------------ flows


def _log_prob_of_flow(fn: Any, value: Tensor, drawn: Tensor) -> Tensor:
    event_dim = len(fn.event_shape)
    log_prob: Any = 0.0
    for transform in reversed(_parts(fn.transforms)):
        before, drawn_before = _inverse(transform, value, drawn)
        forward = _copy(transform)
        log_slope = forward.log_abs_det_jacobian(before, forward(before))
        event_dim += transform.domain.event_dim - transform.codomain.event_dim
        log_prob = log_prob - sum_rightmost(log_slope, event_dim - transform.domain.event_dim)
        value, drawn = before, drawn_before
    base = _log_prob(fn.base_dist, value, drawn)
    return log_prob + sum_rightmost(base, event_dim - len(fn.base_dist.event_shape))


def _inverse(transform: Transform, value: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the transform made ``value`` of, and what it made ``drawn`` of."""
    try:
        before = transform.inv(drawn)
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            f"the flow {type(transform).__name__} has no inverse, and this value is not its last "
            "sample: score a sample before drawing the next one, or use a flow with an inverse"
        ) from error
    if not getattr(transform, "autoregressive", False):
        try:
            return _copy(transform).inv(value), before
        except (KeyError, NotImplementedError):
            pass
    return _inverse_near(transform, value, before), before


def _inverse_near(transform: Transform, value: Tensor, before: Tensor) -> Tensor:
    """Take one step of Newton's from the known inverse: it has the inverse's derivatives.

    .. math:: x = x_0 + J^{-1} (y - f(x_0))
    """
    if not torch.is_grad_enabled():
        return before
    event_dim = transform.codomain.event_dim
    start = before.detach().requires_grad_()
    after = _flat(_copy(transform)(start), event_dim)
    rows = [
        torch.autograd.grad(after[..., row].sum(), start, retain_graph=True)[0]
        for row in range(after.shape[-1])
    ]
    jacobian = torch.stack([_flat(row, event_dim) for row in rows], -2)
    gap = _flat(value, event_dim) - after
    return start.detach() + torch.linalg.solve(jacobian, gap).reshape(start.shape)


def _flat(value: Tensor, event_dim: int) -> Tensor:
    return value.reshape(*value.shape[: value.dim() - event_dim], -1)


def _copy(transform: Any) -> Any:
    """Copy a transform with its parameters shared: it remembers its last pair, the sample's."""
    if isinstance(transform, _InverseTransform):
        return _copy(transform._inv).inv
    twin = copy.copy(transform)
    twin._inv = None  # a reference to the inverse of the original
    for name, value in vars(transform).items():
        if isinstance(value, MethodType) and value.__self__ is transform:
            vars(twin)[name] = MethodType(value.__func__, twin)
        elif isinstance(value, Transform) and name != "_inv":
            vars(twin)[name] = _copy(value)
    return twin


def _parts(transforms: Any) -> list[Any]:
    return [
        part
        for transform in transforms
        for part in (
            _parts(transform.parts) if isinstance(transform, ComposeTransform) else [transform]
        )
    ]


def _is_flow(fn: Any) -> bool:
    own = TransformedDistribution.log_prob
    return isinstance(fn, TransformedDistribution) and type(fn).log_prob is own


def _holds_a_flow(fn: Any) -> bool:
    while not _is_flow(fn):
        if not hasattr(fn, "base_dist"):
            return False
        fn = fn.base_dist
    return True


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        return bool(fn.has_enumerate_support)
