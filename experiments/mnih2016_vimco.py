"""Do more particles train a better model of binary latents? A sigmoid belief network on MNIST.

    python experiments/mnih2016_vimco.py --scale smoke|cpu|paper --data_root FOLDER

Held against Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), section 6:
the bound of several particles trains the better model, the more so the more particles there are,
and VIMCO trains it without a learned baseline. One layer of 200 binary units, as in "linear-1" of
Backpropagation through the Void (Grathwohl et al., 2018), table 1, whose best training ELBO, after
2,000,000 steps, is -112.5 nats with NVIL. RLOO and DisARM are here for comparison: they spend as
many particles on the ELBO as VIMCO with ten on its bound.

The prior, the encoder and the decoder have logits that are linear in their context; inputs are
centred; MNIST as binarised by Larochelle & Murray (2011), 50,000 training images, batch 24, Adam
at 1e-3. Otherwise than published: NVIL's baseline is linear in x, the rate falls as half a cosine
wave, and was not searched for. At the scales smoke and cpu the run is cut down to a few epochs:
only the order of the rows can be held against the papers, not the numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import static_mnist
import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, judge, spread
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP, Bernoulli, Conditional, Standardize, learned
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import NVIL, RLOO, VIMCO, DisARM, Objective

PUBLISHED = {"NVIL": {"training_elbo_nats": -112.5}}

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "NVIL": lambda: NVIL(nn.Linear(784, 1)),
    "RLOO, 10 particles": lambda: RLOO(10),
    "DisARM, 10 particles": lambda: DisARM(10),
    "VIMCO, 2 particles": lambda: VIMCO(2),
    "VIMCO, 10 particles": lambda: VIMCO(10),
    "VIMCO, 50 particles": lambda: VIMCO(50),
}

# Which row is published as the better one.
ORDER = [
    ("VIMCO, 10 particles", "NVIL"),
    ("VIMCO, 10 particles", "VIMCO, 2 particles"),
    ("VIMCO, 50 particles", "VIMCO, 10 particles"),
]


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    epochs: int
    num_train: int
    num_test: int
    num_samples: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 240, 20, 10),
    "cpu": Scale(6, 30_000, 1_000, 1_000),
    "paper": Scale(960, 50_000, 10_000, 1_000),  # 2,000,000 steps
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "elbo_nats": "test ELBO, nats",
    "training_elbo_nats": "training ELBO, nats",
    "training_seconds": "training, s",
}


def program(x: Tensor) -> VAE:
    """Return a sigmoid belief network of one layer, started at the mean of ``x``."""
    linear, centred = partial(MLP, hidden=()), Standardize(x.mean(0), torch.ones(784))
    vae = VAE(
        prior=learned(Bernoulli((200,))),
        likelihood=Conditional(Bernoulli((784,)), context_shape=(200,), network=linear),
        posterior=Conditional(
            Bernoulli((200,)),
            context_shape=(784,),
            network=lambda *shapes: nn.Sequential(centred, linear(*shapes)),
        ),
    )
    vae.likelihood.start_at(x.mean(0))
    return vae


def run(
    objective: Callable[[], Objective], bits: datasets.Dataset, scale: Scale, seed: int
) -> dict[str, Any]:
    """Train and judge the network with an objective."""
    vae = program(bits.train.x.float())
    done = fit(
        vae,
        bits,
        objective=objective(),
        optim=partial(adam, lr=1e-3),
        weights="last",
        epochs=scale.epochs,
        batch_size=24,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    # The file holds the images digit by digit.
    seen, x = (spread(part.x, scale.num_test).float() for part in (bits.train, bits.test))
    bound = evaluation.elbo(
        vae.model, vae.guide, seen.to(next(vae.parameters()).device), num_particles=10
    )
    return {
        **judge(vae, x, num_samples=scale.num_samples),
        "training_elbo_nats": bound.elbo_nats,
        "training_seconds": done.seconds,
    }


def main(data_root: Path, scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Train and judge with every objective; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        bits = static_mnist.load(data_root, study.scale.num_train, shape=(784,))
        for title, objective in OBJECTIVES.items():
            found = partial(run, objective, bits, study.scale, seed)
            study.measure(title, found, published=PUBLISHED.get(title))
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
