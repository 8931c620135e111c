"""A program's prior as a part by itself: found, replaced, and trained alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.arguments import built, shown
from pyro_vae.components import Conditional, Family, learned
from pyro_vae.components.conditional import Shape
from pyro_vae.evaluation.batching import batches
from pyro_vae.inference import Probe
from pyro_vae.inference.objectives import Objective, data_weight
from pyro_vae.inference.quantities import Quantity
from pyro_vae.inference.terms import SiteTerms, rows_first

__all__ = [
    "BuildsPrior",
    "CodeDensity",
    "Codes",
    "Place",
    "PriorError",
    "alone",
    "prepared",
    "taken_over",
    "with_prior",
]

BuildsPrior = Callable[[Shape], nn.Module]
"""Builds a prior from the shape of one latent; a family learns its raw numbers."""

_ROWS = 1000


class PriorError(ValueError):
    """A program has no prior that can be replaced while all else stays."""


class Place:
    """Where a program holds the prior of its topmost latent: ``prior``, or the last of ``priors``.

    Args:
        program: A module with ``model`` and ``guide``.

    Attributes:
        name: Of the prior among the program's modules, such as "prior" or "priors.1".

    Raises:
        PriorError: If it holds none.
    """

    def __init__(self, program: Any) -> None:
        self.program = program
        several = getattr(program, "priors", None)
        if isinstance(getattr(program, "prior", None), nn.Module):
            self._owner, self._key = program, "prior"
            self.name = "prior"
        elif isinstance(several, nn.ModuleList) and len(several):
            self._owner, self._key = several, str(len(several) - 1)
            self.name = f"priors.{self._key}"
        else:
            raise PriorError(
                f"{shown(program)} has no prior of its own to replace: hold it as a module, "
                'self.prior, which the model calls, pyro.sample("z", self.prior())'
            )

    @property
    def prior(self) -> nn.Module:
        """The prior that is there."""
        found: nn.Module = getattr(self._owner, self._key)
        return found

    def put(self, prior: nn.Module) -> None:
        """Put another prior in its place."""
        setattr(self._owner, self._key, prior)

    def holds(self, name: str) -> bool:
        """Whether a parameter, buffer or module of this name is the prior's."""
        return name == self.name or name.startswith(f"{self.name}.")

    @property
    def posterior(self) -> nn.Module | None:
        """The module that is q of the same latent, by the names of the library's programs."""
        one, several = (getattr(self.program, name, None) for name in ("posterior", "posteriors"))
        found = several[-1] if isinstance(several, nn.ModuleList) and len(several) else one
        return found if isinstance(found, Conditional) else None


class Codes:
    """What a program's guide draws at the prior's site, for rows of data.

    Attributes:
        site: The site's name.
        drawn: Its values, ``[N, *event_shape]``.
        given: What the posterior was given, ``[N, *context_shape]``; None where it is not known.

    Raises:
        PriorError: If the prior depends on something, the guide depends on the prior, or no latent
            of the model has it.
    """

    def __init__(self, place: Place, probe: Probe) -> None:
        self._place, self._probe = place, probe
        self.site = self._site()
        drawn: list[Tensor] = []
        with _calls(place.posterior) as calls, probe.program.evaluating(seed=0):
            for batch in batches(probe.args, _ROWS):
                node = pyro.poutine.trace(probe.program.guide).get_trace(*batch).nodes[self.site]
                drawn.append(rows_first(node["value"], len(node["fn"].event_shape)))
        self.drawn = torch.cat(drawn)
        given = [args[0] for args in calls if args]
        known = bool(given) and sum(map(len, given)) == len(self.drawn)
        self.given = torch.cat(given) if known else None

    def _site(self) -> str:
        place, probe = self._place, self._probe
        name = shown(place.program).removeprefix("a ").removeprefix("an ")
        with probe.looking(), _calls(place.prior) as calls:
            guide = pyro.poutine.trace(probe.program.guide).get_trace(*probe.rows)
            if calls:
                raise PriorError(
                    f"the guide of {name} asks its prior, so that q would change with it: refit "
                    "takes programs whose encoder does not depend on the prior"
                )
            replayed = pyro.poutine.replay(probe.program.model, trace=guide)
            nodes = pyro.poutine.trace(replayed).get_trace(*probe.rows).nodes
            if any(map(_is_given, calls)):
                raise PriorError(
                    f"the prior of {name} depends on what it is given: refit takes one of a latent "
                    "that depends on nothing"
                )
            if calls:
                prior = place.prior()
                for site in probe.layout.latents:
                    if _is_of(nodes[site], prior):
                        return site
        raise PriorError(
            f"no latent of {name} has the distribution that its module {place.name!r} returns: "
            'the model calls the prior at a site, pyro.sample("z", self.prior())'
        )


@contextmanager
def _calls(module: nn.Module | None) -> Iterator[list[tuple[Any, ...]]]:
    """Give a list that takes what a module is called with."""
    given: list[tuple[Any, ...]] = []
    with contextlib.ExitStack() as stack:
        if module is not None:
            hook = module.register_forward_pre_hook(lambda _, args: given.append(args))
            stack.callback(hook.remove)
        yield given


def _is_given(args: tuple[Any, ...]) -> bool:
    """Whether a prior is given something: a family without a context is called with no numbers."""
    return any(
        arg is not None and not (isinstance(arg, Tensor) and arg.numel() == 0) for arg in args
    )


def _is_of(site: Any, prior: Any) -> bool:
    """Whether a site has this distribution: a plate hands out one of its own."""
    if tuple(site["fn"].event_shape) != tuple(prior.event_shape):
        return False
    found, expected = (fn.log_prob(site["value"]) for fn in (site["fn"], prior))
    return torch.allclose(found, expected.expand_as(found), rtol=1e-4, atol=1e-4)


# Replaced -----------------------------------------------------------------------------------------


def with_prior(program: nn.Module, prior: BuildsPrior | nn.Module, probe: Probe) -> nn.Module:
    """Return a copy of a program with another prior, which has met the program's codes.

    Args:
        program: A trained one; it is left as it is.
        prior: Builds a prior from the latent's shape, or is one.
        probe: Of the program, on training data that stand for all of them.

    Raises:
        PriorError: As ``Codes`` and ``prepared`` do.
    """
    codes = Codes(Place(program), probe)
    shape = tuple(codes.drawn.shape[1:])
    made = prior if isinstance(prior, nn.Module) else built("prior", prior, nn.Module, shape)
    changed = copy.deepcopy(program)
    place = Place(changed)
    if isinstance(made, Family):
        posterior: Any = place.posterior
        if posterior is not None and codes.given is not None:
            made.start_from_posterior(posterior, codes.given)
        made = learned(made)
    place.put(made.to(codes.drawn.device))
    prepared(place, codes)
    return changed


def prepared(place: Place, codes: Codes) -> None:
    """Start a new prior from codes: in their units, and where they are.

    Raises:
        PriorError: If it has nothing to learn, or no density at the codes.
    """
    prior: Any = place.prior
    if codes.drawn.is_floating_point():
        prior.to(codes.drawn.dtype)
    if not any(True for _ in prior.parameters()):
        raise PriorError(
            f"{_named(prior)} has nothing to learn: take a prior that has, such as NeuralSpline, "
            "MixtureOfNormals or VampPrior"
        )
    if isinstance(prior, Conditional) and prior.is_new:
        prior.adapt_outputs(codes.drawn)
    try:
        with alone(place.program):  # a prior that is made of the encoder may move its statistics
            fits = _scores(prior, codes.drawn[:_ROWS])
    except (ValueError, RuntimeError, TypeError) as error:
        raise PriorError(_unfit(prior, codes, " ".join(str(error).split())[:200])) from error
    if not fits:
        raise PriorError(_unfit(prior, codes, "they are outside of its support"))


@torch.no_grad()
def _scores(prior: nn.Module, values: Tensor) -> bool:
    distribution, inside = prior(), True
    with contextlib.suppress(NotImplementedError, AttributeError):
        inside = bool(distribution.support.check(values).all())
    return inside and bool(distribution.log_prob(values).isfinite().all())


def _unfit(prior: nn.Module, codes: Codes, reason: str) -> str:
    values, shape = codes.drawn.flatten(), tuple(codes.drawn.shape[1:])
    drawn = f"{shape} numbers from {values.min():g} to {values.max():g}"
    return f"{_named(prior)} cannot score what the guide draws at {codes.site!r}, {drawn}: {reason}"


def _named(prior: nn.Module) -> str:
    return type(getattr(prior, "family", prior)).__name__


def taken_over(before: nn.Module, after: nn.Module) -> None:
    """Give a program all tensors of another one but those of its prior.

    Raises:
        PriorError: If they differ in more than the prior.
    """
    ours, theirs = Place(after), Place(before)
    state = {n: x for n, x in before.state_dict().items() if not theirs.holds(n)}
    own = {n: x for n, x in after.state_dict().items() if not ours.holds(n)}
    differing = sorted({n for n in state.keys() | own.keys() if _shape(state, n) != _shape(own, n)})
    if differing:
        raise PriorError(
            f"the programs differ in more than the prior, at {differing[0]!r}: build the new one "
            "with the same encoder and decoder"
        )
    after.load_state_dict(state, strict=False)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


class CodeDensity(Objective):
    r"""The log-density of codes under the prior, :math:`\mathrm E_{q(z \mid x)} \log p(z)`.

    What training a prior alone can raise where the guide draws points, of which there is no bound.
    """

    roles = ()
    quantity: ClassVar[Quantity] = Quantity("code_log_density", "nats", "log p(z) of codes")

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the log-density of each datum's code in nats, ``[B]``."""
        return torch.stack([terms.log_p[name] for name in terms.log_q]).sum(0).mean(0)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        return data_weight(terms) * self.value(terms)


# Alone --------------------------------------------------------------------------------------------


@contextmanager
def alone(program: nn.Module) -> Iterator[None]:
    """Let a program's prior learn alone: nothing else has gradients, or statistics that move.

    All else is in evaluation mode. What the prior shares with other parts stays as it is, too.
    """
    place = Place(program)
    modes = {module: module.training for module in program.modules()}
    everything = program.named_parameters(remove_duplicate=False)
    fixed = {p for name, p in everything if not place.holds(name) and p.requires_grad}
    place.prior.train()
    for name, module in program.named_modules(remove_duplicate=False):
        if not place.holds(name):
            module.training = module is program  # as a whole it is trained
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
