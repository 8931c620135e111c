"""Effect handlers: KL weights, sticking the landing, frozen parts, temperatures.

Each wraps a model or a guide, ``KLWeight(0.5)(vae.model)``, or stands around a block,
``with KLWeight(0.5): ...``. The weight and the gradients change; the bound that our objectives
report does not. (Pyro's own losses include the weight: they are then no bounds.)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any, Self

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

from pyro_vae.inference.detached import detached
from pyro_vae.inference.named import Named, Partial, checked_names
from pyro_vae.inference.parameters import OwnNames
from pyro_vae.inference.schedules import Controlled, Moving, check_weight, current

__all__ = ["Frozen", "Handler", "KLWeight", "StickingTheLanding", "Temperature"]


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

    def __enter__(self) -> Self:
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

    def __enter__(self) -> Self:
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
