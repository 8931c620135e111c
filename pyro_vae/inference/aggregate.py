"""Objectives with a penalty on the aggregate posterior: InfoVAE, beta-TCVAE, DIP-VAE.

They bring the aggregate posterior

    q(z) = (1/N) sum_n q(z | x_n)

nearer to the prior, to a product over units, or to the identity as its covariance. What they
optimise is no bound, so the ELBO is reported beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.regularized import Regularized, weight_of, weighted_kl
from pyro_vae.inference.schedules import Moving, check_weight, current
from pyro_vae.inference.terms import SiteTerms

__all__ = [
    "DIPVAE",
    "BetaTCVAE",
    "Covariance",
    "GaussianKernel",
    "InfoVAE",
    "InverseMultiquadratic",
    "Kernel",
    "OfMeans",
    "OfSamples",
    "mmd2",
    "stratified_weights",
]


class Kernel:
    """A positive definite kernel between latents."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``[..., M, N]`` for latents ``[..., M, D]`` and ``[..., N, D]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class GaussianKernel(Kernel):
    r"""The Gaussian kernel, :math:`\exp(-|a - b|^2 / (2 D \ell^2))` for D numbers.

    Args:
        length_scale: The distance l for one number, positive.
    """

    length_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(length_scale=self.length_scale)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``[..., M, N]`` for latents ``[..., M, D]`` and ``[..., N, D]``."""
        return (-_squared_distances(a, b) / (2 * a.shape[-1] * self.length_scale**2)).exp()


@dataclass(frozen=True)
class InverseMultiquadratic(Kernel):
    r"""The inverse multiquadratic kernel, :math:`C / (C + |a - b|^2)` with :math:`C = 2 D \ell^2`.

    Its tails are heavier, so that latents far out are still drawn in.

    Args:
        length_scale: The scale l of the prior, positive.

    References:
        Wasserstein Auto-Encoders (Tolstikhin, Bousquet, Gelly & Schoelkopf, 2018)
    """

    length_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(length_scale=self.length_scale)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``[..., M, N]`` for latents ``[..., M, D]`` and ``[..., N, D]``."""
        constant = 2 * a.shape[-1] * self.length_scale**2
        return constant / (constant + _squared_distances(a, b))


class InfoVAE(Regularized):
    r"""The KL, and the distance of the aggregate posterior from the prior.

    .. math::
        (1 - \alpha) \, KL(q(z \mid x) \,\|\, p(z)) + (\alpha + \lambda - 1) \, MMD^2(q(z), p(z))

    The squared maximum mean discrepancy is estimated without bias, from the latents of the batch
    and as many of the prior; it is left out where a batch is down to a single datum. With
    ``alpha=1`` it is a Wasserstein autoencoder. Weights of the data multiply each datum's terms,
    but within the distance each one counts once.

    Args:
        alpha: How much of the KL is left out, at most 1.
        weight: The number lambda; the distance has the weight alpha + lambda - 1.
        kernel: The kernel between latents.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If a weight is negative, or, at the first step, if there are several latent
            sites or the batch has a single datum.

    References:
        InfoVAE: Balancing Learning and Inference in Variational Autoencoders
        (Zhao, Song & Ermon, 2019)
        A Kernel Two-Sample Test (Gretton et al., 2012)
    """

    @at_the_door
    def __init__(
        self,
        alpha: float = 0.0,
        weight: float = 10.0,
        kernel: Kernel | None = None,
        num_particles: int = 1,
    ) -> None:
        check_weight("1 - alpha", 1 - alpha)
        check_weight("alpha + weight - 1", alpha + weight - 1)
        super().__init__(num_particles)
        self.alpha = alpha
        self.weight = weight
        self.kernel = kernel or GaussianKernel()

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return the weighed KL of each datum and the distance in nats, ``[B]``."""
        kl = weighted_kl(terms).mean(0)
        return (1 - self.alpha) * kl + (self.alpha + self.weight - 1) * self.distance(terms)

    def distance(self, terms: SiteTerms) -> Tensor:
        """Return the squared maximum mean discrepancy from the prior, a 0-d tensor."""
        if terms.log_w.shape[1] == 1:
            return torch.zeros(())
        (name,) = terms.log_q
        z = terms.values[name].flatten(2)
        return mmd2(z, _from_prior(terms, name).flatten(2), self.kernel).mean()

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say why the aggregate posterior cannot be compared with the prior; None if it can."""
        return super().refusal(terms) or _of_one_site(self, terms) or _of_two_data(self, terms)


def mmd2(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    r"""Return the unbiased estimate of the squared maximum mean discrepancy, ``[...]``.

    .. math::
        \frac{\sum_{i \ne j} k(a_i, a_j)}{M (M - 1)} + \frac{\sum_{i \ne j} k(b_i, b_j)}{N (N - 1)}
        - \frac{2 \sum_{ij} k(a_i, b_j)}{M N}

    Args:
        a: Samples of one distribution, ``[..., M, D]``.
        b: Samples of the other, ``[..., N, D]``.
        kernel: The kernel between samples.
    """

    def within(c: Tensor) -> Tensor:
        others = 1 - torch.eye(c.shape[-2], dtype=c.dtype, device=c.device)
        return (kernel(c, c) * others).sum((-2, -1)) / (c.shape[-2] * (c.shape[-2] - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean((-2, -1))


_PARTS = ("mutual_information", "total_correlation", "unit_wise_kl")


class BetaTCVAE(Regularized):
    r"""The KL in three parts, of which the dependence among units has the weight beta.

    .. math::
        \alpha \, \underbrace{E \log \frac{q(z \mid x)}{q(z)}}_{\text{mutual information}}
        + \beta \, \underbrace{E \log \frac{q(z)}{\prod_j q(z_j)}}_{\text{total correlation}}
        + \gamma \, \underbrace{E \log \frac{\prod_j q(z_j)}{p(z)}}_{\text{unit-wise KL}}

    The aggregate posterior of the N data is estimated from a batch of B by stratified weights: the
    datum itself counts for itself alone, 1/N, and the others for all the rest,
    (N - 1) / (N (B - 1)) each. The estimate of q(z) is unbiased, and exact where the batch is the
    data set; its logarithm is too small on average. (The paper gives the rest to the others
    unevenly, which is the same in expectation, but depends on their order.) Whatever the estimate,
    the three parts add up to :math:`\log q(z \mid x) - \log p(z)`. A single datum shows no
    aggregate: where a batch is down to one, only the last part is left, the whole KL. Weights of
    the data multiply each datum's terms, but within the aggregate each one counts once.

    Args:
        beta: The weight of the total correlation.
        alpha: The weight of the mutual information.
        gamma: The weight of the unit-wise KL.
        num_data: N, the size of the data set; that of the subsampled plate unless given.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If a weight is negative, or, at the first step, if there are several latent
            sites, if the guide does not factorise over units, if the batch has a single datum, or
            if the size of the data set is unknown or less than the batch's.

    References:
        Isolating Sources of Disentanglement in Variational Autoencoders
        (Chen, Li, Grosse & Duvenaud, 2018)
    """

    example: ClassVar = {"num_data": 100}

    @at_the_door
    def __init__(
        self,
        beta: float | Moving = 6.0,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        num_data: int | None = None,
        num_particles: int = 1,
    ) -> None:
        for name, weight in (("beta", beta), ("alpha", alpha), ("gamma", gamma)):
            check_weight(name, weight)
        if num_data is not None and num_data < 2:
            raise ValueError(f"num_data={num_data}: an aggregate posterior is one of several data")
        super().__init__(num_particles)
        self.beta, self.alpha, self.gamma = beta, alpha, gamma
        self.num_data = num_data

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return the weighed parts of the KL of each datum in nats, ``[B]``."""
        (name,) = terms.log_q
        information, correlation, unit_wise = self.parts(terms).values()
        total = self.alpha * information + current(self.beta) * correlation + self.gamma * unit_wise
        return weight_of(terms, name) * total.mean(0)

    def parts(self, terms: SiteTerms) -> dict[str, Tensor]:
        """Return the three parts of the KL in nats by name, each ``[S, B]``."""
        (name,) = terms.log_q
        log_q, log_p = terms.log_q[name], terms.log_p[name]
        if log_q.shape[1] == 1:
            none = torch.zeros_like(log_q)
            return dict(zip(_PARTS, (none, none, log_q - log_p), strict=True))
        weights = stratified_weights(log_q.shape[1], self._num_data(terms), device=log_q.device).to(
            log_q
        )
        pairs = _pair_densities(terms, name)
        aggregate = (weights + pairs.sum(-1)).logsumexp(-1)
        product = (weights.unsqueeze(-1) + pairs).logsumexp(-2).sum(-1)
        parts = (log_q - aggregate, aggregate - product, product - log_p)
        return dict(zip(_PARTS, parts, strict=True))

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say why the aggregate posterior cannot be estimated; None if it can."""
        reason = super().refusal(terms) or _of_one_site(self, terms) or _of_two_data(self, terms)
        if reason is not None:
            return reason
        (name,) = terms.log_q
        (site, *_) = terms.latents[name]
        if site.posterior_units() is None or terms.values[name].dim() < 3 or site.nesting > 1:
            return (
                f"BetaTCVAE needs a guide that factorises over the units of site {name!r}, such as "
                "a diagonal Normal; use InfoVAE, which takes any guide"
            )
        if self._num_data(terms) is None:
            return (
                "BetaTCVAE needs to know how many data the batch is taken from: give "
                "BetaTCVAE(num_data=...), or subsample the plate"
            )
        return None

    def _num_data(self, terms: SiteTerms) -> Any:
        if self.num_data is not None:
            return self.num_data
        (site, *_) = next(iter(terms.latents.values()))
        return site.full_size


def stratified_weights(batch: int, num_data: int, *, device: torch.device | None = None) -> Tensor:
    r"""Return the log-weights of a batch's data in each other's aggregate posterior, ``[B, B]``.

    .. math:: w_{ii} = \frac1N, \qquad w_{ij} = \frac{N - 1}{N (B - 1)}

    Args:
        batch: B, the number of data in the batch.
        num_data: N, the number of data in all.
        device: Where the weights are made.

    Raises:
        ValueError: If the batch is larger than the data set, or has a single datum.

    References:
        Isolating Sources of Disentanglement in Variational Autoencoders
        (Chen, Li, Grosse & Duvenaud, 2018), appendix C
    """
    if not 1 < batch <= num_data:
        raise ValueError(
            f"num_data={num_data}: a batch of {batch} cannot be taken from so many data"
        )
    own = torch.eye(batch, dtype=torch.float64, device=device)
    others = (num_data - 1) / (num_data * (batch - 1))
    return (own / num_data + (1 - own) * others).log()


class Covariance:
    """Which covariance of the latents over a batch is meant."""

    def __call__(self, loc: Tensor, variance: Tensor) -> Tensor:
        """Return ``[D, D]`` from the posterior means and variances, ``[B, D]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class OfMeans(Covariance):
    r"""Of the posterior means, :math:`\mathrm{Cov}_x(E_q[z])`: DIP-VAE-I."""

    def __call__(self, loc: Tensor, variance: Tensor) -> Tensor:
        """Return ``[D, D]`` from the posterior means and variances, ``[B, D]``."""
        centred = loc - loc.mean(0)
        return centred.T @ centred / len(loc)


@dataclass(frozen=True)
class OfSamples(Covariance):
    r"""Of the aggregate posterior, :math:`\mathrm{Cov}_x(E_q[z]) + E_x[\mathrm{Cov}_q(z)]`.

    This is DIP-VAE-II.
    """

    def __call__(self, loc: Tensor, variance: Tensor) -> Tensor:
        """Return ``[D, D]`` from the posterior means and variances, ``[B, D]``."""
        return OfMeans()(loc, variance) + variance.mean(0).diag()


class DIPVAE(Regularized):
    r"""The KL, and the distance of the latents' covariance over the batch from the identity.

    .. math:: \lambda_{od} \sum_{i \ne j} C_{ij}^2 + \lambda_d \sum_i (C_{ii} - 1)^2

    Covariances of a batch are divided by its size. Weights of the data multiply each datum's terms,
    but within the covariance each one counts once.

    Args:
        covariance: C, ``OfMeans()`` or ``OfSamples()``; of samples unless given.
        off_diagonal: The weight of the covariances.
        diagonal: The weight of the variances' distance from one; the paper takes ten times
            ``off_diagonal`` with ``OfMeans``.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If a weight is negative, or, at the first step, if there are several latent
            sites or the units of the guide are not independent with known moments.

    References:
        Variational Inference of Disentangled Latent Concepts from Unlabeled Observations
        (Kumar, Sattigeri & Balakrishnan, 2018)
    """

    @at_the_door
    def __init__(
        self,
        covariance: Covariance | None = None,
        *,
        off_diagonal: float = 10.0,
        diagonal: float = 10.0,
        num_particles: int = 1,
    ) -> None:
        check_weight("off_diagonal", off_diagonal)
        check_weight("diagonal", diagonal)
        super().__init__(num_particles)
        self.covariance = covariance or OfSamples()
        self.off_diagonal, self.diagonal = off_diagonal, diagonal

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return the KL of each datum in nats and the distance, ``[B]``."""
        return weighted_kl(terms).mean(0) + self.distance(terms)

    def distance(self, terms: SiteTerms) -> Tensor:
        """Return the weighed distance of the covariance from the identity, a 0-d tensor."""
        covariance = self.covariance(*_moments(terms))
        diagonal = covariance.diagonal()
        off_diagonal = covariance.square().sum() - diagonal.square().sum()
        return self.off_diagonal * off_diagonal + self.diagonal * (diagonal - 1).square().sum()

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say why the moments of the aggregate posterior are not known; None if they are."""
        reason = super().refusal(terms) or _of_one_site(self, terms)
        if reason is not None:
            return reason
        try:
            _moments(terms)
        except NotImplementedError:
            return (
                f"DIPVAE needs a guide of independent units whose mean and variance are known, but "
                f"that of site {next(iter(terms.log_q))!r} is none; use InfoVAE, which takes any "
                "guide"
            )
        return None


def _pair_densities(terms: SiteTerms, name: str) -> Tensor:
    """Return log q of each unit of each datum's latent under every datum's posterior.

    ``[S, B, B, num_units]``: the second axis is the latent's, the third the posterior's.
    """
    pairs = []
    for site in terms.latents[name]:
        z = site.value().movedim(1, 0).unsqueeze(2)
        pairs.append(site.posterior_units().log_prob(z).movedim(0, 1).flatten(3))
    return torch.cat(pairs)


def _from_prior(terms: SiteTerms, name: str) -> Tensor:
    return torch.cat([site.prior_sample() for site in terms.latents[name]])


def _moments(terms: SiteTerms) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each datum's posterior, ``[S B, D]``."""
    (sites,) = terms.latents.values()
    means, variances = zip(*(site.moments() for site in sites), strict=True)
    return torch.cat(means).reshape(-1, *means[0].shape[2:]).flatten(1), torch.cat(
        variances
    ).reshape(-1, *variances[0].shape[2:]).flatten(1)


def _of_one_site(objective: Objective, terms: SiteTerms) -> str | None:
    if len(terms.log_q) == 1:
        return None
    return (
        f"{type(objective).__name__} compares the aggregate posterior of one latent site, and the "
        f"program has {', '.join(map(repr, terms.log_q))}; use BetaVAE or FreeBits"
    )


def _of_two_data(objective: Objective, terms: SiteTerms) -> str | None:
    if terms.log_w.shape[1] > 1:
        return None
    return (
        f"{type(objective).__name__} compares the data of a batch with each other, and the batch "
        "has one; take larger batches"
    )


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}={number}: expected a positive number")


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by cdist: its gradient is not defined where two latents meet.
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
