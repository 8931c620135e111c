r"""A guide whose parameters are free for each datum, started at the encoder's output.

An encoder hands numbers to distributions: the best that a family can do for one datum is reached by
moving those numbers and not the encoder. Each gets a free offset :math:`\delta`, zero at first,

.. math:: q_\delta(z \mid x) = \mathrm{family}(\mathrm{encoder}(x) + \delta_x),

so that a layer of a hierarchy still depends on the layer before, and the encoder's own guide is
always among what can be reached.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Independent, constraints, transform_to

from pyro_vae.inference.handlers import Handler
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout

__all__ = ["Offsets", "free_offsets"]

# Of several ways to say the same, the one that is moved.
_ALTERNATIVES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
)
_FLOWS = (torch.distributions.TransformedDistribution, dist.TransformedDistribution)


class Offsets(Handler):
    """Add offsets to the numbers behind the guide's distributions.

    Where every latent site has a ``Conditional`` of its own (any module with a ``family`` and a
    ``network``), these are the raw numbers that the network hands to the family, a flow's included.
    Otherwise they are the parameters of each site's distribution, mapped to the real line; of a
    flow then those of its base, while the flow stays as the encoder made it.

    Args:
        families: Of the conditionals whose raw numbers are moved; none for each site's parameters.
        offsets: In the order in which the guide asks for them; None collects zeros in ``found``.

    Raises:
        ValueError: If a site's distribution cannot be taken apart into its parameters.
    """

    def __init__(self, families: Sequence[nn.Module], offsets: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.families = families
        self.found: list[Tensor] = []
        self._offsets = offsets
        self._given: Any = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Offsets:
        """Listen to the families."""
        super().__enter__()
        self._given = None if self._offsets is None else iter(self._offsets)
        self._hooks = [
            family.register_forward_pre_hook(self._at_family) for family in self.families
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        """Let go of them."""
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _at_family(self, family: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor):
            return None  # it needs no numbers
        return (self._moved(args[0]), *args[1:])

    def _pyro_sample(self, msg: Any) -> None:
        latent = not msg["is_observed"] and not poutine.util.site_is_subsample(msg)
        if latent and not self.families:
            rebuilt = self._rebuilt(msg["name"], msg["fn"])
            if self._given is None:
                _check_rebuilt(msg["name"], msg["fn"], rebuilt)
            msg["fn"] = rebuilt

    def _moved(self, raw: Tensor) -> Tensor:
        if self._given is not None:
            return raw + next(self._given)
        self.found.append(torch.zeros_like(raw))
        return raw

    def _rebuilt(self, name: str, fn: Any) -> Any:
        if isinstance(fn, Independent):
            return dist.Independent(self._rebuilt(name, fn.base_dist), fn.reinterpreted_batch_ndims)
        if type(fn) in _FLOWS:
            return dist.TransformedDistribution(self._rebuilt(name, fn.base_dist), fn.transforms)
        free, fixed = _parameters(name, fn)
        moved = {}
        for parameter, (value, transform) in free.items():
            moved[parameter] = transform(self._moved(transform.inv(value)))
        try:
            return type(fn)(**moved, **fixed, validate_args=False)
        except TypeError as error:
            raise _not_covered(name, fn, str(error)) from None


def free_offsets(
    program: Program, layout: Layout, *batch: Tensor
) -> tuple[tuple[nn.Module, ...], list[Tensor]]:
    """Return the families that ``Offsets`` is to listen to, and its offsets, all zero.

    Call inside ``program.evaluating()``.

    Args:
        program: The model and the guide.
        layout: Of the program.
        batch: The data (and what else the program takes) that the offsets are for.

    Raises:
        ValueError: If a latent's samples carry no gradients, or its distribution cannot be taken
            apart into its parameters; names the site.
    """
    trace = poutine.trace(program.guide).get_trace(*batch)
    for name in layout.latents:
        fn = trace.nodes[name]["fn"]
        if not fn.has_rsample:
            raise ValueError(
                f"samples of site {name!r} ({_name(fn)}) carry no gradients, which refinement "
                "follows: measure gaps with a reparameterised guide"
            )
    families = _families(program)
    listening = Offsets(families, None)
    with listening:
        program.guide(*batch)
    if len(listening.found) == len(layout.latents):
        return families, [_of_each_datum(zeros, len(batch[0])) for zeros in listening.found]
    listening = Offsets((), None)
    with listening:
        program.guide(*batch)
    return (), listening.found


def _families(program: Program) -> tuple[nn.Module, ...]:
    """Return the families of the program's conditionals, each once."""
    modules = [module for root in program.reachable for module in root.modules()]
    found = [getattr(m, "family", None) for m in modules if hasattr(m, "network")]
    return tuple(dict.fromkeys(family for family in found if isinstance(family, nn.Module)))


def _of_each_datum(zeros: Tensor, num_data: int) -> Tensor:
    # A conditional without a network hands the same numbers to all data.
    return zeros if len(zeros) == num_data else zeros.expand(num_data, *zeros.shape).clone()


def _parameters(name: str, fn: Any) -> tuple[dict[str, tuple[Tensor, Any]], dict[str, Any]]:
    """Return a distribution's parameters: those that move, with their links, and the others."""
    table = getattr(type(fn), "arg_constraints", None)
    if not isinstance(table, dict) or any(map(constraints.is_dependent, table.values())):
        raise _not_covered(name, fn, "its parameters have no fixed ranges")
    free, fixed = {}, {}
    arguments = inspect.signature(type(fn).__init__).parameters
    excluded = {"self", "validate_args"}
    for group in _ALTERNATIVES:
        offered = [argument for argument in group if argument in table and argument in arguments]
        excluded |= set(offered[1:])
    for argument in arguments:
        if argument in excluded or not hasattr(fn, argument):
            continue
        value, constraint = getattr(fn, argument), table.get(argument)
        if constraint is None or constraint.is_discrete or not isinstance(value, Tensor):
            fixed[argument] = value
            continue
        free[argument] = (value, transform_to(constraint))
    if not free:
        raise _not_covered(name, fn, "it has no parameter to move")
    return free, fixed


def _check_rebuilt(name: str, fn: Any, rebuilt: Any) -> None:
    value = fn.sample()
    if not torch.allclose(rebuilt.log_prob(value), fn.log_prob(value), rtol=1e-3, atol=1e-3):
        raise _not_covered(name, fn, "its parameters do not say all of it")


def _not_covered(name: str, fn: Any, reason: str) -> ValueError:
    return ValueError(
        f"site {name!r} has a {_name(fn)}, which cannot be refined ({reason}): draw it from a "
        "Conditional of a family, or from a distribution of torch or Pyro"
    )


def _name(fn: Any) -> str:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return type(fn).__name__
