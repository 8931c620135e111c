r"""log p(x) by annealed importance sampling, and its bracket from both sides on simulated data.

The path from a start :math:`f_0` (the prior, or the guide) to :math:`f_1(z) = p(x, z)` is
geometric,

.. math:: f_\beta(z) = f_0(z)^{1 - \beta} f_1(z)^\beta,

and all chains of all data move along it in one batch, see ``annealed_chains``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.annealed_chains import Annealing, Chains, Run, Settings
from pyro_vae.evaluation.batching import check_counts, cycled, double
from pyro_vae.evaluation.estimates import NATS, Estimate, Result
from pyro_vae.evaluation.likelihood import importance_estimate
from pyro_vae.evaluation.programs import Prior, takes_program_or_prior
from pyro_vae.evaluation.substitution import substituted
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.sites import dreamt
from pyro_vae.wording import warn

__all__ = [
    "AnnealedEstimate",
    "Bracket",
    "annealed_importance_sampling",
    "annealed_with_bracket",
    "bidirectional",
]

_WIDE = 1.0


@dataclass(frozen=True, eq=False, repr=False)
class AnnealedEstimate(Result):
    r"""log p(x) of each datum from the weights of annealed chains.

    Attributes:
        log_p: In nats, ``[N]``. In expectation a lower bound; an upper one of chains that were
            run backwards from samples of the posterior.
        effective_sample_size: :math:`1 / \sum_k \bar w_k^2` of the chains' normalised weights,
            ``[N]``: ``num_chains`` where annealing is exact, 1 where one chain carries everything.
        acceptance: The average probability that a transition was accepted, ``[N]``.
        num_chains: K, for each datum.
        num_temperatures: T, the steps from the start to p(x, z).
        mean: The average of ``log_p``, as that over the population the data come from.
        monte_carlo_error: Of ``mean`` as the average over these very data. NaN for one chain.
    """

    log_p: Tensor
    effective_sample_size: Tensor
    acceptance: Tensor
    num_chains: int
    num_temperatures: int
    mean: Estimate
    monte_carlo_error: float


@dataclass(frozen=True, eq=False, repr=False)
class Bracket(Result):
    r"""log p(x) of data that the model has simulated, from below and from above.

    Attributes:
        x: The data, ``[N, *event_shape]``.
        lower: From chains that run from the start to p(x, z).
        upper: From chains that run back from z, which was drawn together with x.
        width_nats: How far the upper mean lies above the lower one.
    """

    x: Tensor
    lower: AnnealedEstimate
    upper: AnnealedEstimate
    width_nats: Estimate


@takes_program_or_prior
def annealed_importance_sampling(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_steps: int = 10,
    target_acceptance: float = 0.65,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> AnnealedEstimate:
    r"""Estimate log p(x) by chains that are annealed from a start to p(x, z).

    .. math:: \log \hat p(x) = \log \frac1K \sum_k \prod_{t=1}^T
        \left[\frac{p(x, z_{t-1}^k)}{f_0(z_{t-1}^k)}\right]^{\beta_t - \beta_{t-1}}

    where :math:`z_0 \sim f_0` and :math:`z_t` follows :math:`z_{t-1}` by a transition that leaves
    :math:`f_{\beta_t}` invariant. One temperature would be importance sampling.

    Args:
        probe: The program, with continuous latents: ``vae``, or ``model, guide``. The path starts
            at q(z | x), or, where the guide is None, at the prior.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_temperatures: T, at least 2; a sigmoid schedule, dense at both ends.
        num_chains: K, for each datum.
        num_steps: Of the leapfrog integrator, in each transition.
        target_acceptance: What the pilot run adapts each datum's step sizes to.
        seed: Of the chains; the random state outside is not touched.
        max_pairs: How many chains are in memory at once; None: found by measuring the largest
            tensor of the program.
        progress: Show a progress bar on the standard error stream.
        engine: How densities and gradients are computed: "eager", "recorded" (the same bits),
            "compiled", or "auto", which records and compiles where so many of them make up for it.

    Raises:
        ValueError: If a number is out of range, a latent is discrete, the guide gives no density
            to values it has not drawn, or ``importance_sampling`` would refuse the data.

    References:
        Annealed Importance Sampling (Neal, 2001)
        On the Quantitative Analysis of Decoder-Based Generative Models
        (Wu, Burda, Salakhutdinov & Grosse, 2017)
    """
    settings = Settings(num_temperatures, num_chains, num_steps, target_acceptance, engine)
    args = (x, *fields)
    annealing = Annealing(probe, args, settings, max_pairs)
    chains = Chains.forward(args, annealing.space.num_dims)
    return _estimate(annealing.run(chains, seed, progress=progress), x, settings)


@takes_program_or_prior
def bidirectional(
    probe: Probe,
    x_like: Tensor,
    *fields: Tensor,
    num_data: int = 100,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_steps: int = 10,
    target_acceptance: float = 0.65,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> Bracket:
    r"""Bracket log p(x) of the model's own data, by annealing in both directions.

    Data that are simulated, :math:`z \sim p(z), x \sim p(x \mid z)`, come with a sample of their
    exact posterior. Chains that start there and run the path backwards have weights with the mean
    :math:`1 / p(x)`, and so bound log p(x) from above:

    .. math:: -\log \frac1K \sum_k \prod_{t=1}^T
        \left[\frac{p(x, z_t^k)}{f_0(z_t^k)}\right]^{\beta_{t-1} - \beta_t}

    The width says how far off annealing can be, with these settings and this model; on real data,
    where there is no upper bound, as far as the simulated ones are like them. More than 1 nat
    is warned of.

    Args:
        probe: As in ``annealed_importance_sampling``; the model looks at x in no other way than by
            observing it.
        x_like: Data, ``[M, *event_shape]``: only shape, type and device count.
        fields: What else the model takes, ``[M, ...]`` each; repeated in turn.
        num_data: How many to simulate.
        num_temperatures: As in ``annealed_importance_sampling``, and so the others.
        num_chains: For each datum and direction.
        num_steps: Likewise.
        target_acceptance: Likewise.
        seed: Of the data and of the chains.
        max_pairs: Likewise.
        progress: Likewise.
        engine: Likewise.

    Raises:
        ValueError: As ``annealed_importance_sampling``.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo
        (Grosse, Ghahramani & Adams, 2015)
    """
    settings = Settings(num_temperatures, num_chains, num_steps, target_acceptance, engine)
    args, values = _simulated(probe, (x_like, *fields), num_data, seed)
    annealing = Annealing(probe, args, settings, max_pairs)
    chains = Chains.both_ways(args, annealing.ends(values, args, seed))
    return _bracket(annealing.run(chains, seed, progress=progress), args[0], settings)


@takes_program_or_prior
def annealed_with_bracket(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_data: int = 5,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_steps: int = 10,
    target_acceptance: float = 0.65,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> tuple[AnnealedEstimate, Bracket]:
    """Return both of the above from one batch of chains, faster than one after the other.

    Args:
        probe: As in ``annealed_importance_sampling``, and so the others.
        x: Likewise.
        fields: Likewise.
        num_data: How many to simulate for the bracket.
        num_temperatures: Likewise.
        num_chains: Likewise.
        num_steps: Likewise.
        target_acceptance: Likewise.
        seed: Likewise.
        max_pairs: Likewise.
        progress: Likewise.
        engine: Likewise.

    Raises:
        ValueError: As ``annealed_importance_sampling``.
    """
    settings = Settings(num_temperatures, num_chains, num_steps, target_acceptance, engine)
    given = (x, *fields)
    args, values = _simulated(probe, given, num_data, seed)
    annealing = Annealing(probe, given, settings, max_pairs)
    simulated = Chains.both_ways(args, annealing.ends(values, args, seed))
    chains = Chains.forward(given, annealing.space.num_dims).and_(simulated)
    run = annealing.run(chains, seed, progress=progress)
    return _estimate(run[: len(x)], x, settings), _bracket(run[len(x) :], args[0], settings)


def _simulated(
    probe: Probe, args: tuple[Tensor, ...], num_data: int, seed: int
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Draw data (beside fields that are repeated in turn), and the latents that they came from."""
    check_counts(num_data=num_data)
    # The order of latents is the model's here, as with its prior for a guide.
    program = Prior(probe.program.model)
    layout = Probe(program, *args).layout
    rows = cycled(args, num_data)
    with program.evaluating(seed=seed):
        trace = substituted(program.model, {}, layout, rows, stochastic=True)
    x = dreamt(
        trace, layout, rows, what="the bracket is that of data which the model has drawn",
        mend="estimate without it (annealed_importance_sampling)",
    )  # fmt: skip
    return x, {name: trace.nodes[name]["value"] for name in layout.latents}


def _estimate(run: Run, x: Tensor, settings: Settings, *, sign: int = 1) -> AnnealedEstimate:
    log_w = run.log_w
    of_weights = importance_estimate(log_w.logsumexp(0), (2 * log_w).logsumexp(0), len(log_w), x)
    return AnnealedEstimate(
        log_p=sign * of_weights.log_p,
        effective_sample_size=of_weights.effective_sample_size,
        acceptance=run.acceptance,
        num_chains=settings.num_chains,
        num_temperatures=settings.num_temperatures,
        mean=of_weights.mean.times(sign, NATS),
        monte_carlo_error=of_weights.monte_carlo_error,
    )


def _bracket(run: Run, x: Tensor, settings: Settings) -> Bracket:
    """Return the bracket of chains that ran forward, and then as many backward."""
    lower = _estimate(run[: len(x)], x, settings)
    upper = _estimate(run[len(x) :], x, settings, sign=-1)
    width = Estimate.of(double(upper.log_p - lower.log_p))
    if width > _WIDE:
        warn(
            f"the bracket of log p(x) is {width:.2f} nats wide: annealing is that far off; "
            f"more temperatures than {lower.num_temperatures} narrow it"
        )
    return Bracket(x, lower, upper, width)
