"""Does MCMC in training give a better model? HMC from the guide's draws on binarised MNIST.

    python experiments/hoffman2017_hmc.py --scale smoke|cpu|paper --data_root FOLDER

Held against Learning Deep Latent Gaussian Models with Markov Chain Monte Carlo (Hoffman, 2017): the
model follows latents that HMC has moved from the guide's draws, the guide follows the ELBO, and
log p(x) of test data is higher than that of a model trained by the ELBO. Only this order is held
against the paper, no number of its tables.

One layer of latents under a standard normal prior, two hidden layers on each side, Adam with half a
cosine wave, batch 100. Each move of a chain has five leapfrog steps, and the step size aims at an
acceptance of 0.8. log p(x) is by annealed importance sampling, since samples from the guide alone
tell it too low where the guide does not fit the model: how few of them count is the effective
sample size.

A step with HMC costs many evaluations of the decoder. So the ELBO is trained twice: for as many
steps, and for as many epochs as the processor time of the HMC row allows. Time is the processor's,
of one thread, with recorded steps; the weights with the best validation bound stay.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import static_mnist
import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, judge, spread
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP
from pyro_vae.engine import fast_arithmetic
from pyro_vae.inference import ELBO, Objective, Refined

PLAIN, MOVED, LONGER = "ELBO", "HMC, equal steps", "ELBO, equal time"

ORDER = [(MOVED, PLAIN), (LONGER, PLAIN), (MOVED, LONGER)]


class Scale(NamedTuple):
    """How much is trained, and how well it is judged."""

    epochs: int
    num_train: int
    num_test: int
    num_samples: int
    num_temperatures: int = 100
    num_chains: int = 2
    num_steps: int = 3
    num_latents: int = 20
    hidden: tuple[int, ...] = (200, 200)


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 200, 20, 10, 3, 2, 1, 5, (20,)),
    "cpu": Scale(15, 10_000, 200, 500),
    "paper": Scale(200, 50_000, 10_000, 5_000, 1_000, 16, 20, 50, (500, 500)),
}

COLUMNS = {
    "annealed_nll_nats": "-log p(x), annealed, nats",
    "nll_nats": "by the guide's samples",
    "elbo_nats": "test ELBO, nats",
    "effective_sample_size": "effective samples",
    "active_units": "active units",
    "training_epochs": "epochs",
    "processor_seconds": "processor time, s",
}


def run(
    objective: Objective, epochs: int, bits: datasets.Dataset, x: Tensor, study: Study[Scale]
) -> dict[str, Any]:
    """Train and judge under an objective, on the test data ``x``."""
    scale = study.scale
    torch.manual_seed(study.seed)
    network = partial(MLP, hidden=scale.hidden)
    vae = VAE.assemble(
        (1, 28, 28), (scale.num_latents,), network=network, data=bits.train.x[:2_000].float()
    )
    with fast_arithmetic():
        start = time.process_time()
        done = fit(
            vae, bits, objective=objective, epochs=epochs, batch_size=100, engine="recorded",
            seed=study.seed, progress=sys.stderr.isatty(),
        )  # fmt: skip
        seconds = time.process_time() - start
        found = judge(vae, x, num_samples=scale.num_samples)
        annealed = evaluation.annealed_importance_sampling(
            vae, x, num_temperatures=scale.num_temperatures, num_chains=scale.num_chains,
            num_steps=5, engine="recorded",
        )  # fmt: skip
    step_size = {"step_size": float(objective.size.value)} if isinstance(objective, Refined) else {}
    return {
        **found,
        **step_size,
        "log_p": annealed.log_p,
        "annealed_nll_nats": -annealed.mean,
        "annealed_nll_nats_standard_error": annealed.mean.standard_error,
        "training_epochs": done.epochs,
        "best_epoch": done.best_epoch,
        "processor_seconds": seconds,
    }


def main(data_root: Path, scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Train and judge all three; print the table, write the record, draw the figure."""
    torch.set_num_threads(1)
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        bits = static_mnist.load(data_root, study.scale.num_train)
        x = spread(bits.test.x, study.scale.num_test).float()  # in the file, digit by digit
        epochs = study.scale.epochs
        train = partial(run, bits=bits, x=x, study=study)
        study.measure(PLAIN, partial(train, ELBO(), epochs))
        moved = Refined(num_steps=study.scale.num_steps)
        study.measure(MOVED, partial(train, moved, epochs))
        plain, longer = (study.rows[each]["processor_seconds"] for each in (PLAIN, MOVED))
        study.measure(LONGER, partial(train, ELBO(), max(1, round(epochs * longer / plain))))
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
