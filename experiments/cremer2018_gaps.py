"""What keeps the ELBO below log p(x): the guide's family, or its encoder? Both gaps on MNIST.

    python experiments/cremer2018_gaps.py --scale smoke|cpu|paper --data_root FOLDER

Held against Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018):
both gaps are positive, a flow shrinks the approximation gap, and a wider encoder the amortisation
gap. Its numbers are not held against here.

As published: MNIST as binarised by Larochelle & Murray (2011), two ELU layers of 200 (500 in the
wide encoder) on each side of 50 latents; batch 100, Adam with epsilon 1e-4, eight stages of 3^i
epochs at the rate 1e-3 * 10^(-i / 7), of which the KL's weight rises from 0 to 1 over the first
400; log p(x) is the larger of importance sampling with 5,000 samples and of annealed importance
sampling by HMC. L[q*] is the ELBO of the best q of the guide's family, found for each datum by
Adam. Otherwise than published: the flow has two affine coupling steps and no auxiliary variables,
and its networks stay as they are when what the encoder hands to it is refined; refinement takes a
given number of steps; annealing starts at the encoder's q, not at the prior, and how far off it
can be is measured from both sides, on data that the model has simulated. At the scale cpu the
stages are cut down to one to three epochs each, with fewer images, chains and temperatures.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from burda2016_iwae import Stages
from jsonargparse import auto_cli
from static_mnist import load
from study import ScaleName, Study, chosen, spread
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP, AffineCoupling, DiagonalNormal, Family
from pyro_vae.engine import fast_arithmetic
from pyro_vae.evaluation import Gaps
from pyro_vae.evaluation.gaps import best_estimate
from pyro_vae.inference import BetaVAE, Linear, Scheduled

_MOST_SAMPLES = 1_000  # of an ELBO


class Row(NamedTuple):
    """A guide: the family of q(z | x), and the widths of the encoder."""

    family: Callable[[tuple[int, ...]], Family]
    hidden: tuple[int, ...]


TABLE = {
    "diagonal": Row(DiagonalNormal, (200, 200)),
    "flow": Row(partial(AffineCoupling, num_flows=2), (200, 200)),
    "diagonal, wide encoder": Row(DiagonalNormal, (500, 500)),
}

# Which row is published to have the smaller gap of a kind.
SMALLER = [
    ("approximation", "flow", "diagonal"),
    ("amortization", "diagonal, wide encoder", "diagonal"),
]


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    stages: tuple[int, ...]  # epochs of each
    warm_up_epochs: int
    num_train: int
    num_test: int
    num_samples: int
    num_chains: int
    num_temperatures: int
    num_leapfrog_steps: int
    num_simulated: int
    num_updates: int
    num_particles: int
    left_out: tuple[str, ...] = ()


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        (1,) * 2, 1, 200, 4, 20, 2, 5, 1, 3, 5, 2, ("diagonal", "diagonal, wide encoder")
    ),
    "cpu": Scale((1, 1, 1, 2, 2, 2, 3, 3), 3, 50_000, 100, 5_000, 4, 200, 10, 20, 300, 8),
    "paper": Scale(
        tuple(3**i for i in range(8)), 400, 50_000, 1_000, 5_000, 100, 10_000, 10, 100, 2_000, 100
    ),
}

COLUMNS = {
    "log_p_nats": "log p(x), nats",
    "refined_elbo_nats": "L[q*], nats",
    "elbo_nats": "L[q], nats",
    "approximation_gap_nats": "approximation gap, nats",
    "amortization_gap_nats": "amortisation gap, nats",
    "bracket_nats": "AIS off by up to, nats",
}


def program(row: Row, x: Tensor) -> VAE:
    """Return the paper's network with the guide of a row, started at the mean of ``x``."""
    elu = partial(MLP, activation=nn.ELU)
    vae = VAE.assemble(
        (784,),
        (50,),
        posterior=row.family,
        encoder=partial(elu, hidden=row.hidden),
        decoder=partial(elu, hidden=(200, 200)),
    )
    vae.likelihood.start_at(x.mean(0))
    return vae


def train(row: Row, bits: datasets.Dataset, scale: Scale, seed: int) -> tuple[VAE, float]:
    """Return the trained program of a row, and the seconds that took."""
    vae = program(row, bits.train.x.float())
    epochs = sum(scale.stages)
    done = fit(
        vae,
        bits,
        objective=BetaVAE(Scheduled(Linear(0.0, 1.0, until=scale.warm_up_epochs / epochs))),
        optim=partial(torch.optim.Adam, lr=1e-3, eps=1e-4),
        schedule=Stages(scale.stages),
        weights="last",
        epochs=epochs,
        batch_size=100,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    return vae, done.seconds


def measure(program: Any, x: Tensor, scale: Scale) -> tuple[Gaps, dict[str, Any]]:
    """Return both gaps of a program on test data, and the numbers that tell of them."""
    model, guide = program.model, program.guide
    annealing = {
        "num_chains": scale.num_chains,
        "num_temperatures": scale.num_temperatures,
        "num_steps": scale.num_leapfrog_steps,
    }
    sampled = evaluation.importance_sampling(model, guide, x, num_samples=scale.num_samples)
    annealed = evaluation.annealed_importance_sampling(model, guide, x, **annealing)
    gaps = evaluation.inference_gaps(
        model, guide, x,
        log_p=best_estimate(sampled, annealed).log_p,
        num_updates=scale.num_updates, num_particles=scale.num_particles,
        num_samples=min(scale.num_samples, _MOST_SAMPLES),
    )  # fmt: skip
    with warnings.catch_warnings():
        # It is measured to be told, and stands in the table.
        warnings.filterwarnings("ignore", message="the bracket of log p")
        bracket = evaluation.bidirectional(
            model, guide, x, num_data=scale.num_simulated, **annealing
        )
    return gaps, {
        **_told("log_p_nats", gaps.log_p),
        "importance_sampled_log_p_nats": sampled.mean,
        "annealed_log_p_nats": annealed.mean,
        **_told("refined_elbo_nats", gaps.refined_elbo),
        **_told("elbo_nats", gaps.elbo),
        **{
            key: value
            for kind in ("approximation", "amortization", "inference")
            for key, value in _told(f"{kind}_gap_nats", of_each(gaps, kind)).items()
        },
        "bracket_nats": bracket.width_nats,
        "bracket_nats_standard_error": bracket.width_nats.standard_error,
    }


def of_each(gaps: Gaps, kind: str) -> Tensor:
    """Return the gap of a kind of each datum, ``[N]``."""
    return {
        "approximation": gaps.log_p - gaps.refined_elbo,
        "amortization": gaps.refined_elbo - gaps.elbo,
        "inference": gaps.log_p - gaps.elbo,
    }[kind]


def compared(found: Mapping[str, Gaps]) -> list[dict[str, Any]]:
    """Return by how much the gaps that are published as smaller are so, on the same data."""
    return [
        {
            "gap": kind,
            "smaller": smaller,
            "larger": larger,
            **_told("less_nats", of_each(found[larger], kind) - of_each(found[smaller], kind)),
        }
        for kind, smaller, larger in SMALLER
        if {smaller, larger} <= found.keys()
    ]


def _told(name: str, of_each: Tensor) -> dict[str, float]:
    error = of_each.std().item() / math.sqrt(len(of_each))
    return {name: of_each.mean().item(), f"{name}_standard_error": error}


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and measure every guide; print the table, write the record, draw the figure."""
    table = chosen(TABLE, rows, left_out=SCALES[scale].left_out)
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        bits = load(data_root, study.scale.num_train, shape=(784,))
        x = spread(bits.test.x, study.scale.num_test).float()
        found: dict[str, Gaps] = {}

        def run(title: str, row: Row) -> dict[str, Any]:
            with fast_arithmetic():
                vae, seconds = train(row, bits, study.scale, seed)
                on_device = x.to(next(vae.parameters()).device)
                found[title], numbers = measure(vae, on_device, study.scale)
            return {**numbers, "training_seconds": seconds}

        for title, row in table.items():
            study.measure(title, partial(run, title, row))
        study.note(compared=compared(found))
        study.show(COLUMNS)
        for pair in compared(found):
            print(f"\n{_said(pair)}")


def _said(pair: Mapping[str, Any]) -> str:
    less = pair["less_nats"]
    word = "smaller" if less > 0 else "larger"
    return (
        f"The {pair['gap']} gap of {pair['smaller']} is {word} than that of {pair['larger']}, by "
        f"{abs(less):.2f} ± {pair['less_nats_standard_error']:.2f} nats"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
