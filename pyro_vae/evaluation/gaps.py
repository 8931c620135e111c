"""The inference gap and its parts: the approximation gap and the amortization gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.evaluation.annealing import AnnealedEstimate, annealed_importance_sampling
from pyro_vae.evaluation.batching import double
from pyro_vae.evaluation.estimates import Estimate
from pyro_vae.evaluation.likelihood import ImportanceEstimate, importance_sampling
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.evaluation.refinement import refine
from pyro_vae.inference.probe import Probe

__all__ = ["Gaps", "best_estimate", "inference_gaps"]


@dataclass(frozen=True, eq=False)
class Gaps:
    r"""How far the ELBO is from log p(x), and why; nats per datum.

    .. math::
        \underbrace{\log p(x) - L[q^\star]}_{\text{approximation}} +
        \underbrace{L[q^\star] - L[q]}_{\text{amortisation}}

    Attributes:
        log_p: Of each datum, ``[N]``.
        refined_elbo: :math:`L[q^\star]`, by the best q of the family for each datum, ``[N]``.
        elbo: :math:`L[q]`, by the encoder, ``[N]``.
    """

    log_p: Tensor
    refined_elbo: Tensor
    elbo: Tensor

    @property
    def approximation(self) -> Estimate:
        """What the best q of the family lacks, averaged over the data."""
        return Estimate.of(self.log_p - self.refined_elbo)

    @property
    def amortization(self) -> Estimate:
        """What the encoder lacks of that, averaged over the data."""
        return Estimate.of(self.refined_elbo - self.elbo)

    @property
    def inference(self) -> Estimate:
        """Both together, averaged over the data."""
        return Estimate.of(self.log_p - self.elbo)

    def __repr__(self) -> str:
        return (
            f"Gaps(inference={self.inference}, approximation={self.approximation}, "
            f"amortization={self.amortization}, {len(self.elbo):,} data)"
        )


@takes_program
def inference_gaps(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    log_p: Tensor | None = None,
    num_updates: int = 300,
    num_particles: int = 8,
    learning_rate: float = 0.03,
    num_samples: int = 1000,
    seed: int = 0,
    progress: bool = False,
    engine: str = "auto",
) -> Gaps:
    """Measure both parts of the inference gap.

    Args:
        probe: The program: ``vae``, or ``model, guide``; its latents are reparameterised.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        log_p: log p(x) in nats, ``[N]``; None: the larger of importance sampling with 5,000
            samples and annealed importance sampling, with their other settings as they are.
        num_updates: As in ``refine``, and so the others.
        num_particles: Likewise.
        learning_rate: Likewise.
        num_samples: Likewise.
        seed: Likewise.
        progress: Likewise.
        engine: Likewise.

    Raises:
        ValueError: As ``refine`` and, without ``log_p``, as ``annealed_importance_sampling``.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018)
    """
    if log_p is None:
        chosen: dict[str, Any] = {"seed": seed, "progress": progress, "engine": engine}
        sampled = importance_sampling(probe, x, *fields, num_samples=5000, **chosen)
        from_prior = (probe.program.model, None)
        annealed = annealed_importance_sampling(*from_prior, x, *fields, **chosen)
        log_p = best_estimate(sampled, annealed).log_p
    if log_p.shape != x.shape[:1]:
        raise ValueError(f"log_p has shape {tuple(log_p.shape)} for {len(x)} data: give one each")
    refined = refine(
        probe, x, *fields,
        num_updates=num_updates, num_particles=num_particles, learning_rate=learning_rate,
        num_samples=num_samples, seed=seed, progress=progress, engine=engine,
    )  # fmt: skip
    return Gaps(double(log_p), refined.refined_elbo, refined.elbo)


def best_estimate(
    *estimates: ImportanceEstimate | AnnealedEstimate,
) -> ImportanceEstimate | AnnealedEstimate:
    """Return the estimate with the largest mean: all are lower bounds in expectation.

    Of each datum by itself the larger one would be no lower bound, but the larger of two errors.
    """
    return max(estimates, key=lambda estimate: estimate.mean)
