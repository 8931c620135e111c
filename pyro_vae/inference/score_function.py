r"""Objectives for latents without reparameterisation: score functions of low variance.

The gradient of a mean over :math:`q` is that of :math:`f(z_s) \nabla \log q(z_s \mid x)`, from
which any number may be subtracted that does not depend on :math:`z_s`: a baseline. The objectives
differ in where they take it from. Reparameterised latents of the same guide keep their pathwise
gradient; scores are never scaled, since plates and handlers weigh terms, not draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Independent

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.objectives import (
    ELBO,
    Objective,
    data_weight,
    elbo_surrogate,
    log_mean_exp,
    score,
    weighed_log_w,
)
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import SiteTerms

__all__ = ["NVIL", "RLOO", "VIMCO", "Baseline", "DisARM"]


class RLOO(ELBO):
    r"""The evidence lower bound; the other particles of a datum are the baseline of each.

    .. math:: \frac1S \sum_s \Big(f_s - \frac{1}{S-1} \sum_{r \ne s} f_r\Big) \nabla \log q(z_s)

    with :math:`f = \log p(x, z) - \log q(z \mid x)`; unbiased.

    Args:
        num_particles: S, at least 2.

    Raises:
        ValueError: If ``num_particles`` is less than 2.

    References:
        Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof & Welling, 2019)
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016)
    """

    averages = False
    exact_instead = "ELBO, which has no variance from such a site"

    @at_the_door
    def __init__(self, num_particles: int = 2) -> None:
        super().__init__(_two_or_more(num_particles, "ELBO or NVIL"))

    def signal(self, terms: SiteTerms) -> Tensor:
        """Return the weight of each particle's score, ``[S, B]``, without gradients."""
        log_w = weighed_log_w(terms).detach()
        return log_w - _mean_of_others(log_w)


class VIMCO(Objective):
    r"""The importance-weighted bound of IWAE, for any latents.

    .. math::
        \hat L = \log \frac1S \sum_s w_s, \qquad
        \nabla \hat L + \sum_s (\hat L - \hat L_{-s}) \nabla \log q(z_s)

    In :math:`\hat L_{-s}` the weight of particle s is replaced by the geometric mean of the
    others. Unbiased for the gradient of the bound; equal to IWAE where all is reparameterised.

    Args:
        num_particles: S, at least 2. Memory grows with S squared, of numbers per datum only.

    Raises:
        ValueError: If ``num_particles`` is less than 2.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016)
    """

    exact_instead = "IWAE"
    weighs_particles = True

    @at_the_door
    def __init__(self, num_particles: int = 50) -> None:
        super().__init__(_two_or_more(num_particles, "ELBO or NVIL"))

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the log of the mean weight of each datum in nats, ``[B]``."""
        return log_mean_exp(terms.log_w)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        log_w = weighed_log_w(terms)
        bound = log_mean_exp(log_w)
        signal = (bound - _bound_without_each(log_w)).detach()
        return data_weight(terms) * (bound + (signal * score(terms)).sum(0))


class Baseline(nn.Module):
    r"""What :class:`NVIL` subtracts from its signal, :math:`C(x) + c`, and divides it by.

    Args:
        network: The learned part C: a module from x, ``[B, *event_shape]``, to ``[B]`` or
            ``[B, 1]``; None for :math:`C = 0`.
        decay: How much of the running averages each step keeps, in [0, 1).

    Attributes:
        center: The running mean c of the signal in nats, 0-d.
        variance: Its running variance v in nats squared, 0-d.
    """

    center: Tensor
    variance: Tensor

    @at_the_door
    def __init__(self, network: nn.Module | None = None, *, decay: float = 0.8) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: the part that is kept lies in [0, 1)")
        self.network = network
        self.decay = decay
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the learned part of the baseline of each datum, ``[B]``."""
        if self.network is None:
            return x.new_zeros(len(x))
        predicted = self.network(x)
        if predicted.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"the baseline's network gives a tensor of shape {tuple(predicted.shape)} for "
                f"{len(x)} data: it should give one number for each, [{len(x)}, 1]"
            )
        return predicted.reshape(len(x))

    @property
    def spread(self) -> Tensor:
        r"""Return :math:`\max(1, \sqrt v)`, 0-d."""
        return self.variance.sqrt().clamp(min=1.0)

    @torch.no_grad()
    def observe(self, signal: Tensor) -> None:
        """Move the running averages towards those of a step's ``signal``, in place."""
        moments = ((self.center, signal.mean()), (self.variance, signal.var(correction=0)))
        for average, new in moments:
            average.mul_(self.decay).add_((1 - self.decay) * new.to(average.dtype))


class NVIL(ELBO):
    r"""The evidence lower bound; the baseline is learned from x, and the signal normalised.

    .. math:: \frac1S \sum_s \frac{f_s - C(x) - c}{\max(1, \sqrt v)} \nabla \log q(z_s)

    with :math:`f = \log p(x, z) - \log q(z \mid x)`. The averages c and v are those of earlier
    steps (the paper's include the step's own, at the price of a bias), so the scores' gradient is
    unbiased up to its positive factor; gradients of the model and of reparameterised latents are
    unbiased. C learns by its squared error, a term of the surrogate that reaches nothing else; its
    parameters are stepped with the program's.

    Args:
        network: C, as for :class:`Baseline`; None for running averages alone.
        num_particles: S, the number of samples of the latents for each datum.
        decay: How much of the running averages each step keeps, in [0, 1).

    Attributes:
        baseline: The module with C's parameters and the running averages.

    Raises:
        ValueError: If ``num_particles`` is less than 1 or ``decay`` not in [0, 1); at the first
            step, if the network does not give one number for each datum.

    References:
        Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014)
    """

    averages = False
    exact_instead = "ELBO, which has no variance from such a site"

    @at_the_door
    def __init__(
        self, network: nn.Module | None = None, *, num_particles: int = 1, decay: float = 0.8
    ) -> None:
        super().__init__(num_particles)
        self.baseline = Baseline(network, decay=decay)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program and return its terms, and with them x for the baseline."""
        return _TermsAndData(**vars(super().table(program, layout, *args)), x=args[0])

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``, and move the running averages."""
        assert isinstance(terms, _TermsAndData)
        baseline = self.baseline
        residual = weighed_log_w(terms).detach() - baseline(terms.x)
        error = residual - baseline.center
        signal = error / baseline.spread
        # The gradient of this square is the signal times that of C, as in the paper.
        square = (0.5 * error * signal).mean(0)
        baseline.observe(residual.detach())
        return elbo_surrogate(terms, signal.detach()) - data_weight(terms) * square


@dataclass(frozen=True)
class _TermsAndData(SiteTerms):
    """The table, and the data ``[B, *event_shape]`` that it was made for."""

    x: Tensor = field(kw_only=True)


class DisARM(ELBO):
    r"""The evidence lower bound for a Bernoulli latent, from antithetic pairs of samples.

    .. math::
        \tfrac12 \big(f(b) - f(\tilde b)\big) \, (b_d - \tilde b_d) \, \sigma(|\alpha_d|), \qquad
        b = [u < \sigma(\alpha)], \quad \tilde b = [1 - u < \sigma(\alpha)]

    for each logit :math:`\alpha_d`, averaged over pairs; unbiased. Also found as U2G. The pair has
    the logits in common, hence one latent site only.

    Args:
        num_particles: S, even: S/2 pairs for each datum.

    Raises:
        ValueError: If ``num_particles`` is odd or less than 2; before the first step, if the
            program has another latent than one Bernoulli site.

    References:
        DisARM: An Antithetic Gradient Estimator for Binary Latent Variables
        (Dong, Mnih & Tucker, 2020)
        Probabilistic Best Subset Selection via Gradient-Based Optimization
        (Yin, Ho, Yan, Qian & Zhou, 2020)
    """

    averages = False
    exact_instead = "ELBO, which has no variance from such a site"

    @at_the_door
    def __init__(self, num_particles: int = 2) -> None:
        if num_particles < 2 or num_particles % 2:
            raise ValueError(
                f"num_particles={num_particles}: DisARM draws pairs, so their number is even"
            )
        super().__init__(num_particles)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program with samples in pairs and return its terms."""
        with _AntitheticPairs():
            return super().table(program, layout, *args)

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say why this program cannot be trained, and what can; None if it can."""
        first, *others = terms.latents
        if others:
            return (
                f"DisARM takes one latent site, but the guide has {first!r} and {others[0]!r}: the "
                "two samples of a pair share their logits; use RLOO or VIMCO"
            )
        fn, _ = _without_independent(terms.latents[first][0].guide["fn"])
        if isinstance(fn, dist.Bernoulli) and not fn.has_rsample:
            return None
        family, nearest = type(fn).__name__.lstrip("_"), "RLOO or VIMCO"
        return (
            f"DisARM takes a Bernoulli latent, but the guide draws {first!r} from a {family}: use "
            f"{'ELBO' if terms.pathwise[first] else nearest}"
        )


class _AntitheticPairs(Messenger):
    """Draw a guide's Bernoulli sites in pairs: by u and by 1 - u."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        fn, num_dims = _without_independent(msg["fn"])
        if isinstance(fn, dist.Bernoulli) and not fn.has_rsample:
            uniform = self._uniform(msg, fn.logits.detach())
            msg["fn"] = _AntitheticBernoulli(fn.logits, uniform).to_event(num_dims)

    def _uniform(self, msg: Any, like: Tensor) -> Tensor:
        if any(frame.name == "particles" for frame in msg["cond_indep_stack"]):
            half = torch.rand_like(like[: len(like) // 2])
            return torch.cat([half, 1 - half])
        # One particle after the other: the next one is this one's partner.
        if msg["name"] in self._waiting:
            return 1 - self._waiting.pop(msg["name"])
        self._waiting[msg["name"]] = torch.rand_like(like)
        return self._waiting[msg["name"]]


class _AntitheticBernoulli(dist.Bernoulli):
    """A Bernoulli drawn by given uniform numbers; its score is DisARM's, its log-mass its own."""

    def __init__(self, logits: Tensor, uniform: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.uniform = uniform

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return the values that ``uniform`` stands for."""
        return (self.uniform < self.probs).to(self.logits.dtype).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-mass of ``value`` in nats, with the gradient of the pair."""
        logits = self.logits.detach()
        partner = (1 - self.uniform < self.probs.detach()).to(logits.dtype)
        score = (value - partner) * logits.abs().sigmoid()
        return super().log_prob(value).detach() + score * (self.logits - logits)


def _mean_of_others(log_w: Tensor) -> Tensor:
    return (log_w.sum(0) - log_w) / (len(log_w) - 1)


def _bound_without_each(log_w: Tensor) -> Tensor:
    """Return the bound with each weight replaced by the mean of the others, ``[S, B]``."""
    num = len(log_w)
    own = torch.eye(num, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
    # Summed without it, not subtracted: a weight of zero has the logarithm -inf.
    each = log_w.unsqueeze(1)
    others = torch.where(own, 0.0, each).sum(0) / (num - 1)
    return log_mean_exp(torch.where(own, others, each))


def _two_or_more(num_particles: int, alternative: str) -> int:
    if num_particles < 2:
        raise ValueError(
            f"num_particles={num_particles}: leaving one out takes at least two; with one, use "
            f"{alternative}"
        )
    return num_particles


def _without_independent(fn: Any) -> tuple[Any, int]:
    """Return the distribution below ``.to_event``, and how many dimensions that declared."""
    num_dims = 0
    while isinstance(fn, Independent):
        num_dims += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return fn, num_dims
