"""Effect handlers: KL weights, sticking the landing, frozen parts, temperatures.

Each wraps a model or a guide, ``KLWeight(0.5)(vae.model)``, or stands around a block,
``with KLWeight(0.5): ...``. The weight and the gradients change; the bound that our objectives
report does not. (Pyro's own losses include the weight: they are then no bounds.)
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import (
    Independent,
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategorical,
    RelaxedOneHotCategoricalStraightThrough,
)
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.utils import stateless

from pyro_vae.arguments import shown
from pyro_vae.inference.detached import detached
from pyro_vae.inference.parameters import OwnNames
from pyro_vae.inference.schedules import Controlled, Moving, check_weight, current

__all__ = [
    "Frozen",
    "Handler",
    "KLWeight",
    "Named",
    "Partial",
    "StickingTheLanding",
    "Temperature",
    "checked_names",
]


def checked_names(sites: Collection[str] | None) -> tuple[str, ...] | None:
    """Return the names of sites that a handler is for, None for all.

    Raises:
        TypeError: If it is one string, or not all are strings.
        ValueError: If there is none.
    """
    if sites is None:
        return None
    if isinstance(sites, str):
        raise TypeError(f'sites={sites!r}: give a list of the names of sites, sites=["{sites}"]')
    if not isinstance(sites, Collection):
        raise TypeError(f"sites={shown(sites)}: give a list of the names of sites")
    names = tuple(dict.fromkeys(sites))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"sites: {type(name).__name__} is no name of a site; give strings")
    if not names:
        raise ValueError("sites=[]: it is for no site; name some, or leave sites out for all")
    return names


class Named(Messenger):
    """Hold what handlers inside and around it are for against what the whole program has.

    Args:
        modules: Those of the program; a frozen one that is not among them has to be called.

    Raises:
        ValueError: On leaving, if a handler names a latent site that it does not meet.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self._parameters = {id(p) for module in modules for p in module.parameters()}
        self._latents: Counter[str] = Counter()
        self._observed: set[str] = set()
        self._met: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        self._frozen: dict[int, nn.Module] = {}
        self._hooks: list[Any] = []

    @staticmethod
    def around() -> list[Named]:
        """Return all that the running statement stands in."""
        return [handler for handler in runtime._PYRO_STACK if isinstance(handler, Named)]

    def note(self, handler: str, names: tuple[str, ...], site: str) -> None:
        """Note that a handler for some sites meets a latent site, be it one of those or not."""
        self._met.setdefault((handler, names), set()).update({site} & {*names})

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Note that modules are frozen, and whether they are called."""
        for module in modules:
            if id(module) in self._frozen or self._holds(module):
                continue
            self._frozen[id(module)] = module
            for part in module.modules():
                self._hooks.append(part.register_forward_pre_hook(self._forgets(module)))

    def __enter__(self) -> Named:
        """Look at the modules that are frozen around it, too."""
        for handler in runtime._PYRO_STACK:
            self.watch(getattr(handler, "frozen", ()))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Refuse names without a site, and warn of modules that have no part in the program."""
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        if error[:1] in ((), (None,)):
            for (handler, names), met in self._met.items():
                self._check(handler, names, met)
            outermost = not any(type(named) is Named for named in self.around())
            for module in self._frozen.values() if outermost else ():
                warnings.warn(
                    f"Frozen: the module {type(module).__name__} has no part in the program, so "
                    "that nothing of it is frozen; give a module that model or guide uses",
                    stacklevel=2,
                )

    def _pyro_post_sample(self, msg: Any) -> None:
        if poutine.util.site_is_subsample(msg):
            return
        if msg["is_observed"]:
            self._observed.add(msg["name"])
        else:
            self._latents[msg["name"]] += 1

    def _check(self, handler: str, names: tuple[str, ...], met: set[str]) -> None:
        for name in names:
            if name not in met:
                raise ValueError(f"{handler}(sites={[*names]}): {self._reason(handler, name)}")

    def _reason(self, handler: str, name: str) -> str:
        known = sorted(self._latents)
        if name in known:
            return f"the latent site {name!r} is not sampled inside this handler; leave it out"
        latents = ", ".join(map(repr, known))
        if name in self._observed:
            return f"{name!r} is an observed site, which {handler} leaves alone; latent: {latents}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        nearest = f"; did you mean {near[0]!r}?" if near else ""
        return f"there is no latent site {name!r}: the latent sites are {latents}{nearest}"

    def _holds(self, module: nn.Module) -> bool:
        return any(id(p) in self._parameters for p in module.parameters())

    def _forgets(self, module: nn.Module) -> Any:
        def called(*_: Any) -> None:
            self._frozen.pop(id(module), None)

        return called


class Partial(Named):
    """As ``Named``, but of a run that may be of model or guide alone.

    A handler for a site that the other one has is spared, unless it meets none of its sites.
    """

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Leave frozen modules alone: they may be those of the other one."""

    def _check(self, handler: str, names: tuple[str, ...], met: set[str]) -> None:
        saw_both = max(self._latents.values(), default=0) > 1
        if not met or saw_both:
            super()._check(handler, names, met)


class Handler(Messenger):
    """An effect on a program; what it wraps keeps its signature and its modules.

    Args:
        sites: The latent sites it is for; all of them unless given.

    Raises:
        TypeError: If the sites are one string, or not all strings.
        ValueError: If there are none; before training, evaluation or on leaving, if one of them is
            not in the program.
    """

    def __init__(self, sites: Collection[str] | None = None) -> None:
        super().__init__()
        self.sites = checked_names(sites)
        self._looks: Partial | None = None

    def __enter__(self) -> Handler:
        """Look at which sites there are, unless whoever runs the program does."""
        around = runtime._PYRO_STACK
        if self.sites is not None and not any(isinstance(h, (Named, OwnNames)) for h in around):
            self._looks = Partial()
            self._looks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Refuse names of sites that the program does not have."""
        super().__exit__(*error)
        looks, self._looks = self._looks, None
        if looks is not None:
            looks.__exit__(*error)

    def is_for(self, msg: Any) -> bool:
        """Whether a site is a latent one that it is for."""
        if msg["is_observed"] or poutine.util.site_is_subsample(msg):
            return False
        if self.sites is None:
            return True
        for named in Named.around():
            named.note(type(self).__name__, self.sites, msg["name"])
        return msg["name"] in self.sites

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a model or a guide, so that it runs with this effect."""
        wrapper = super().__call__(fn)
        functools.update_wrapper(wrapper, fn, updated=())
        return wrapper


class KLWeight(Handler):
    r"""Weigh the KL of the latents: :math:`\log p(x \mid z) - w \, KL(q(z \mid x) \,\|\, p(z))`.

    Scales log p(z) in the model and log q(z | x) in the guide, so wrap both. The weight may be 0,
    where ``pyro.poutine.scale`` raises. Observed sites and the plate's own message are left alone.

    Args:
        weight: w, not negative; a ``Scheduled`` moves during training, and so does a tensor that
            is filled in place.
        sites: The latent sites it is for; all of them unless given.

    Raises:
        ValueError: If the weight is negative or not a number, or a site is not in the program.
        TypeError: If it is a ``Controlled``: a handler sees no KL, an objective does.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
        (Higgins et al., 2017)
    """

    def __init__(
        self, weight: float | Tensor | Moving, *, sites: Collection[str] | None = None
    ) -> None:
        if isinstance(weight, Controlled):
            raise TypeError(
                "KLWeight(Controlled(...)): a handler does not measure the KL that the controller "
                "needs; use the objective BetaVAE(beta=Controlled(...))"
            )
        check_weight("weight", weight)
        super().__init__(sites)
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if self.is_for(msg):
            msg["scale"] = msg["scale"] * current(self.weight)


class StickingTheLanding(Handler):
    r"""Leave the guide's score out: gradients of log q reach its parameters through z alone.

    .. math:: \nabla_\phi \log q_{\bar\phi}(z_\phi \mid x), \qquad \bar\phi = \phi

    Wrap the guide. For one particle, and for any objective that is linear in log q, the gradient
    keeps its expectation; where q is the exact posterior of a guide with one latent site it is
    exactly zero. For IWAE and other bounds of several particles it is biased: take ``DReG``.
    Sites whose samples carry no gradient are left alone: there the score is all there is. Where
    one site's distribution depends on another's sample, that dependence is left out as well, which
    has expectation zero, too, but is not zero at the exact posterior.

    References:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
        (Roeder, Wu & Duvenaud, 2017)
    """

    def _pyro_sample(self, msg: Any) -> None:
        # Before the sample is drawn, since plates outside still broadcast the distribution.
        if self.is_for(msg) and msg["fn"].has_rsample:
            msg["fn"] = detached(msg["fn"])


class Frozen(Handler):
    """Give the parameters of some modules no gradient while the program runs.

    Wrap model or guide: ``Frozen(vae.likelihood)(vae.model)`` trains the encoder alone. Gradients
    still pass through the modules to what they are given. To freeze a module for good,
    ``module.requires_grad_(False)`` does without a handler.

    Args:
        modules: Whose parameters; with those of the modules inside them.

    Raises:
        ValueError: If none of the modules has a parameter.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        if not any(True for module in modules for _ in module.parameters()):
            raise ValueError("Frozen: none of these modules has a parameter to freeze")
        self.frozen = modules
        self._stack = ExitStack()

    def __enter__(self) -> Frozen:
        """Put tensors without gradients in the place of the parameters."""
        for named in Named.around():
            named.watch(self.frozen)
        super().__enter__()
        self._stack.enter_context(warnings.catch_warnings())
        # A pyro.module statement says that it leaves them out: that is what is wanted here.
        warnings.filterwarnings("ignore", message=".* was not registered in the param store")
        for module in self.frozen:
            tensors = {name: p.detach() for name, p in module.named_parameters()}
            self._stack.enter_context(stateless._reparametrize_module(module, tensors))
        return self

    def __exit__(self, *error: Any) -> None:
        """Put the parameters back."""
        try:
            self._stack.close()
        finally:
            super().__exit__(*error)


class Temperature(Handler):
    """Give relaxed distributions another temperature: lower is nearer to discrete values.

    For the Concrete distributions of binary and categorical latents, straight-through ones
    included. Wrap the guide; the prior keeps a temperature of its own. Samples and densities both
    follow it, so the bound stays one.

    Args:
        temperature: Positive; a ``Scheduled`` moves during training.
        sites: The latent sites it is for; all relaxed ones unless given.

    Raises:
        ValueError: If the temperature is not positive, if a site that is named is not relaxed, or,
            on leaving, if there was no site for it.

    References:
        The Concrete Distribution (Maddison, Mnih & Teh, 2017)
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    def __init__(
        self, temperature: float | Tensor | Moving, *, sites: Collection[str] | None = None
    ) -> None:
        check_weight("temperature", temperature)
        if not float(current(temperature)) > 0:
            raise ValueError(f"temperature={float(current(temperature)):g}: it is positive")
        super().__init__(sites)
        self.temperature = temperature
        self._found = False

    def _pyro_sample(self, msg: Any) -> None:
        if not self.is_for(msg):
            return
        relaxed = _with_temperature(msg["fn"], torch.as_tensor(current(self.temperature)))
        if relaxed is not None:
            msg["fn"], self._found = relaxed, True
        elif self.sites is not None:
            raise ValueError(
                f"Temperature: site {msg['name']!r} has a {type(msg['fn']).__name__}, which has no "
                "temperature; name relaxed sites only"
            )

    def __exit__(self, *error: Any) -> None:
        """Refuse a program in which it had no effect."""
        super().__exit__(*error)
        found, self._found = self._found, False
        if not found and self.sites is None and error[:1] in ((), (None,)):
            raise ValueError(
                "Temperature: the program has no relaxed latent site; use RelaxedBernoulli or "
                "RelaxedOneHotCategorical, or leave the handler out"
            )


_RELAXED = (
    RelaxedBernoulliStraightThrough,
    RelaxedBernoulli,
    RelaxedOneHotCategoricalStraightThrough,
    RelaxedOneHotCategorical,
)


def _with_temperature(fn: Any, temperature: Tensor) -> Any:
    """Return the distribution at a temperature; None if it has none."""
    if isinstance(fn, Independent):
        base = _with_temperature(fn.base_dist, temperature)
        return None if base is None else base.to_event(fn.reinterpreted_batch_ndims)
    for relaxed in _RELAXED:
        if type(fn) is relaxed:
            return relaxed(temperature.to(fn.logits), logits=fn.logits)
    return None
