"""Objectives: reductions of the table of site terms, as Pyro ELBO objects.

Each has a *value*, which is reported under the name of its *quantity*, a bound unless it says
otherwise, and a *surrogate*, whose gradient is followed, less the auxiliary losses of components.
They work in ``pyro.infer.SVI``, too. All particles are drawn at once where the program allows it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, ClassVar, Generic, TypeVar

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program, exclusively
from pyro_vae.inference.quantities import ELBO_NATS, Quantity
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.strata import log_average_exp
from pyro_vae.inference.terms import SiteTerms, site_terms

__all__ = ["ELBO", "IWAE", "AnalyticELBO", "Bound", "Objective", "Remembered"]

_T = TypeVar("_T")


class Remembered(Generic[_T]):
    """A table by objects' identity that keeps none of them alive.

    A method is its object and its function. Of objects that have no weak references nothing is
    remembered.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], tuple[list[Any], _T]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def of(self, *objects: Any) -> _T | None:
        """Return what was noted of these objects; None if nothing was."""
        parts = _parts(objects)
        references, value = self._found.get(_key(parts), ([], None))
        known = len(references) == len(parts)
        return value if known and all(map(_is_of, references, parts)) else None

    def note(self, value: _T, *objects: Any) -> None:
        """Remember something of these objects together."""
        parts = _parts(objects)
        key, found = _key(parts), self._found

        def forget(_: Any) -> None:
            found.pop(key, None)

        try:
            found[key] = ([weakref.ref(part, forget) for part in parts], value)
        except TypeError:
            return


def _parts(objects: tuple[Any, ...]) -> list[Any]:
    parts: list[Any] = []
    for each in objects:
        parts += [each.__self__, each.__func__] if isinstance(each, MethodType) else [each]
    return parts


def _key(parts: list[Any]) -> tuple[int, ...]:
    return tuple(map(id, parts))


def _is_of(reference: Any, part: Any) -> bool:
    return reference() is part


# Beside the objectives: a copy of one has met no program, and none keeps a program alive.
_LAYOUTS: Remembered[Layout] = Remembered()


class Objective(PyroELBO):
    """A bound on log p(x) for each datum, from its table of site terms.

    A leaf defines ``value`` and, where another gradient is followed, ``surrogate``. Losses keep
    Pyro's convention: negative, summed over the data, scaled as a subsampled plate says.

    Args:
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If ``num_particles`` is less than 1.
    """

    roles = ()
    weighs_particles: ClassVar[bool] = False
    """Whether particles are weighed by their densities among themselves, as no ELBO does."""
    quantity: ClassVar[Quantity] = ELBO_NATS
    """What ``value`` is; what is no bound of log p(x) has a name of its own."""
    averages: bool = False
    """Whether it reduces particles by means alone, weighed ones where the table says so."""
    exact_instead: ClassVar[str] = "ELBO or IWAE"
    """What takes a program whose sites are enumerated, where this does not."""

    @at_the_door
    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles={num_particles}: at least one sample is needed")
        super().__init__(num_particles=num_particles)
        self.vectorize_particles = True

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that the objective holds, which are trained with the rest."""
        return {name: held for name, held in vars(self).items() if isinstance(held, nn.Module)}

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``."""
        raise NotImplementedError

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``, with all weights applied."""
        raise NotImplementedError

    def followed(self, terms: SiteTerms) -> Tensor:
        """Return the surrogate less the auxiliary losses of components, for each datum, ``[B]``."""
        surrogate = self.surrogate(terms)
        if not terms.auxiliary:
            return surrogate
        losses = sum(terms.average(loss) for loss in terms.auxiliary.values())
        return surrogate - data_weight(terms) * losses

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program and return what ``value`` and ``surrogate`` reduce."""
        return site_terms(
            program, layout, *args,
            num_particles=self.num_particles, bounded=self.quantity.is_bound,
            in_strata=self.averages,
        )  # fmt: skip

    def refuses(self, layout: Layout) -> str | None:
        """Say why marked sites cannot be run through under this objective; None if they can."""
        if not layout.strata.sites:
            return None
        if not self.averages:
            names = ", ".join(repr(stratum.name) for stratum in layout.strata.sites)
            return (
                f"{type(self).__name__} counts all particles alike, but {names} is marked to be "
                f"enumerated, which takes means that q weighs: use {self.exact_instead}"
            )
        return layout.strata.obstacle

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say why this objective cannot train a program, and which one can; None if it can.

        Args:
            terms: The table of a few data, without gradients.
        """
        if not self.weighs_particles or self.num_particles == 1 or terms.layout is None:
            return None
        return terms.layout.sampled_weights(type(self).__name__)

    @exclusively
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> float:
        """Return the negative bound, summed over the data."""
        with torch.no_grad():
            program, layout = self._program(model, guide, args)
            terms = self.table(program, layout, *args)
            return (-data_scale(terms) * self.value(terms).sum()).item()

    @exclusively
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> Tensor:
        """Return a tensor with the loss's value and the surrogate's gradient."""
        program, layout = self._program(model, guide, args)
        terms = self.table(program, layout, *args)
        loss = -data_scale(terms) * self.value(terms).detach().sum()
        surrogate = -self.followed(terms).sum()
        return loss + (surrogate - surrogate.detach())

    @exclusively
    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> float:
        """Return the loss and add the surrogate's gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return Program(model, guide).traces(*args)

    def _program(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[Program, Layout]:
        program, layout = Program(model, guide), _LAYOUTS.of(self, model, guide)
        if layout is None:
            layout = Probe(program, *args).layout
            reason = self.refuses(layout)
            if reason is not None:
                raise ValueError(reason)
            self._refuse(program, layout, args)
            self.accept(model, guide, layout)
        return program, layout

    def accept(self, model: Callable[..., Any], guide: Callable[..., Any], layout: Layout) -> None:
        """Take a program that was looked at, and not refused, without another look.

        Args:
            model: As it will be called.
            guide: Likewise.
            layout: Of the program.
        """
        _LAYOUTS.note(layout, self, model, guide)

    def _refuse(self, program: Program, layout: Layout, args: tuple[Any, ...]) -> None:
        # All rows: a handler may hold one weight for each datum of this very batch.
        with program.evaluating(seed=0), pyro.validation_enabled(False):
            reason = self.refusal(self.table(program, layout, *args))
        if reason is not None:
            raise ValueError(reason)


class ELBO(Objective):
    r"""The evidence lower bound, by Monte Carlo.

    .. math:: \frac1S \sum_s \log p(x, z_s) - \log q(z_s \mid x)

    Gradients go through reparameterised samples; other latents take the score function, weighted
    with the log-weight of their datum. Equal to ``pyro.infer.Trace_ELBO``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        Black Box Variational Inference (Ranganath, Gerrish & Blei, 2014)
    """

    averages = True
    near: ClassVar = {
        "REINFORCE": "where latents have no gradient, ELBO is REINFORCE; RLOO has less variance"
    }

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the mean log-weight of each datum in nats, ``[B]``."""
        return terms.average(terms.log_w)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        scored = not all(terms.pathwise.values())
        return elbo_surrogate(terms, self.signal(terms) if scored else None)

    def signal(self, terms: SiteTerms) -> Tensor:
        """Return the weight of each particle's score, ``[S, B]``, without gradients."""
        return weighed_log_w(terms).detach()


class Bound(Objective):
    """A bound that is one formula of the log-weights, and whose own gradient is followed.

    A leaf defines ``bound``; one that also takes what each particle counts, as ``log_share``, says
    ``averages = True``. The latents have to be reparameterised, or enumerated.
    """

    roles = ()
    weighs_particles = True

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``, from log-weights ``[S, B]``.

        Args:
            log_w: The log-weights.
            log_share: What each particle counts, ``[S, B]``; None: all alike.
        """
        raise NotImplementedError

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``."""
        return self.bound(terms.log_w, *_share(terms))

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        return data_weight(terms) * self.bound(weighed_log_w(terms), *_share(terms))

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent has samples without gradients, if one has."""
        for name, pathwise in terms.pathwise.items():
            if not pathwise:
                return (
                    f"{type(self).__name__} needs reparameterised latents, but samples of site "
                    f"{name!r} carry no gradients: its guide would not be trained; use VIMCO or "
                    "RWS for a bound of several particles, or ELBO"
                )
        return super().refusal(terms)


class IWAE(Bound):
    r"""The importance-weighted bound, which grows with S towards log p(x).

    .. math:: \log \frac1S \sum_s \frac{p(x, z_s)}{q(z_s \mid x)}

    The particles of each datum are weighed among themselves. Gradients go through
    reparameterised samples.

    Raises:
        ValueError: Before the first step, if a latent is not reparameterised.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """

    synonyms = ("IWELBO",)
    averages = True

    @at_the_door
    def __init__(self, num_particles: int = 50) -> None:
        super().__init__(num_particles)

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return the log of the mean weight of each datum in nats, ``[B]``."""
        return log_mean_exp(log_w, log_share)


def data_scale(terms: SiteTerms) -> float:
    """Return how many data each datum of the batch stands for, as its plate says."""
    return terms.num_data


def data_weight(terms: SiteTerms) -> Any:
    """Return what each datum counts in what is followed, a number or ``[B]``."""
    return terms.num_data * terms.weight


def weighed(terms: SiteTerms) -> tuple[Tensor, Tensor]:
    """Return log p(x, z) and log q(z | x) as handlers weigh the sites, ``[S, B]``.

    Weights of particles are of one datum, so that of the datum is left out here. What is made of
    them is multiplied with ``data_weight``.
    """
    log_p = sum(terms.scale_p[name] * log_p for name, log_p in terms.log_p.items())
    log_q = sum(terms.scale_q[name] * log_q for name, log_q in terms.log_q.items())
    return torch.as_tensor(log_p), torch.as_tensor(log_q)


def weighed_log_w(terms: SiteTerms) -> Tensor:
    """Return the log-weights as handlers weigh the sites, ``[S, B]``."""
    log_p, log_q = weighed(terms)
    return log_p - log_q


def score(terms: SiteTerms) -> Tensor:
    """Return log q of the latents that are not reparameterised, ``[S, B]``.

    Their score is a factor of the bound, not a term of it: no handler's weight belongs to it.
    """
    scored = [log_q for name, log_q in terms.log_q.items() if not terms.pathwise[name]]
    return sum(scored, torch.zeros(()))


def elbo_surrogate(terms: SiteTerms, signal: Tensor | None) -> Tensor:
    """Return what has the ELBO's gradient, ``[B]``, if ``signal``, ``[S, B]``, weighs the scores.

    The log q of latents without reparameterisation stands in it only there: its own gradient has
    the mean zero.
    """
    total = sum(terms.scale_p[name] * log_p for name, log_p in terms.log_p.items())
    log_q = [terms.scale_q[n] * q for n, q in terms.log_q.items() if terms.pathwise[n]]
    total = total - sum(log_q, torch.zeros(()))
    if signal is not None:
        total = total + signal * score(terms)
    return data_weight(terms) * terms.average(total)


def log_mean_exp(log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
    """Return the log of the mean of the weights of each datum in nats, ``[B]``.

    Args:
        log_w: ``[S, B]``.
        log_share: What each particle counts, likewise; None: all alike.
    """
    return log_average_exp(log_w, log_share)


def _share(terms: SiteTerms) -> tuple[Tensor, ...]:
    # A bound that counts particles alike takes the weights alone.
    return () if terms.log_share is None else (terms.log_share,)


class AnalyticELBO(Objective):
    r"""The evidence lower bound, with the KL of each site in closed form where it has one.

    .. math::
        \frac1S \sum_s \log p(x \mid z_s)
        - \sum_i KL\big(q(z_i \mid z^s_{<i}, x) \,\|\, p(z_i \mid z^s_{<i})\big)

    Sites without a closed form are sampled, as by ``ELBO``. So is a site that the model declares
    after another one, but the guide before it: its closed form would not have the bound as its
    mean. The expectation is that of ``ELBO`` for every program, mean-field or not.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), appendix B
    """

    averages = True

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``."""
        kl = sum((terms.kl(name) for name in terms.log_q), torch.zeros(()))
        return terms.average(-terms.distortion - kl)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        observed = [name for name in terms.log_p if name not in terms.log_q]
        total = sum(terms.scale_p[name] * terms.log_p[name] for name in observed)
        total = total - sum((_scaled_kl(terms, name) for name in terms.log_q), torch.zeros(()))
        if not all(terms.pathwise.values()):
            total = total + total.detach() * score(terms)
        return data_weight(terms) * terms.average(total)


def _scaled_kl(terms: SiteTerms, name: str) -> Tensor:
    r"""Return :math:`b \log q - a \log p` with the scales b and a, its KL closed if it can be."""
    log_p, scale_q = terms.log_p.get(name), terms.scale_q[name]
    closed = terms.closed_kl(name)
    if log_p is None or closed is None:
        pathwise = terms.pathwise[name]
        log_q = terms.log_q[name] if pathwise else terms.log_q[name].detach()
        return scale_q * log_q - (0.0 if log_p is None else terms.scale_p[name] * log_p)
    scaled = scale_q * closed
    if scale_q is terms.scale_p[name] or _are_equal(scale_q, terms.scale_p[name]):
        return scaled
    return scaled + (scale_q - terms.scale_p[name]) * log_p


def _are_equal(scale: Any, other: Any) -> bool:
    # Tensors are not compared: a recorded step may not ask for their values.
    return isinstance(scale, float) and isinstance(other, float) and scale == other
