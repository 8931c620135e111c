"""A plate inside a datum that takes some elements leaves the ELBO its mean, and nothing else."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import evaluation
from pyro_vae.inference import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    RLOO,
    RWS,
    TVO,
    VIMCO,
    AnalyticELBO,
    DReG,
    InChunks,
    Renyi,
    RWSDReG,
)

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def program(taken: int | None):
    """Return a model of four numbers, of which a step takes so many, and its exact guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            with pyro.plate("numbers", 4, subsample_size=taken, dim=-2) as few:
                pyro.sample("x", dist.Normal(z.movedim(-1, -2)[..., few, :], 1.0), obs=x.T[few])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    return model, guide


JUDGES = {
    "importance_sampling": lambda m, g: evaluation.importance_sampling(m, g, X, num_samples=2),
    "annealing": lambda m, g: evaluation.annealed_importance_sampling(m, g, X, num_temperatures=2),
    "a posterior's samples": lambda m, g: evaluation.sample_posterior(m, g, X, num_transitions=2),
}
WEIGH = [
    IWAE(2), MIWAE(4, 2), CIWAE(0.5, 2), PIWAE(4, 2), DReG(2), Renyi(0.5, 2), RWS(2), RWSDReG(2),
    TVO(2), VIMCO(2), InChunks(IWAE(2), 1),
]  # fmt: skip


@pytest.mark.parametrize("judge", JUDGES)
def test_what_is_made_of_densities_is_refused(judge):
    with pytest.raises(ValueError, match="the plate 'numbers' inside a datum takes some elements"):
        JUDGES[judge](*program(1))


@pytest.mark.parametrize("objective", WEIGH, ids=lambda objective: type(objective).__name__)
def test_objectives_that_weigh_particles_are_refused(objective):
    with pytest.raises(ValueError, match="the plate 'numbers' inside a datum takes some elements"):
        objective.loss(*program(1), X)
    assert objective.loss(*program(None), X) > 0


@pytest.mark.parametrize("objective", [ELBO(4), AnalyticELBO(), RLOO(2), IWAE(1)])
def test_the_elbo_is_not(objective):
    assert objective.loss(*program(1), X) > 0


def test_the_elbo_has_the_mean_of_all_elements():
    torch.manual_seed(0)
    (some, whole), objective = (program(2), program(None)), ELBO(1)
    found = torch.tensor([[objective.loss(*each, X) for each in (some, whole)] for _ in range(200)])
    difference = found[:, 0] - found[:, 1]
    assert abs(difference.mean()) < 4 * difference.std() / 200**0.5
