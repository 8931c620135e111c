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

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import record
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP, Bernoulli, Conditional, Standardize, learned
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import NVIL, RLOO, VIMCO, DisARM, Objective

PUBLISHED_TRAINING_ELBO_NATS = {"NVIL": -112.5}

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


SCALES = {
    "smoke": Scale(1, 240, 20, 10),
    "cpu": Scale(6, 50_000, 1_000, 1_000),
    "paper": Scale(960, 50_000, 10_000, 1_000),  # 2,000,000 steps
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


def data(root: Path, num_train: int) -> datasets.Dataset:
    """Return the statically binarised MNIST of ``binarized_mnist.npz``, as bits ``[N, 784]``."""
    packed = np.load(root / "binarized_mnist" / "binarized_mnist.npz")
    train, validation, test = (
        datasets.Data(torch.from_numpy(np.unpackbits(packed[part], axis=1)))
        for part in ("train", "valid", "test")
    )
    train = datasets.Data(train.x[:num_train])
    return datasets.Dataset("binarized MNIST", train, validation, test, levels=1)


def run(objective: Objective, bits: datasets.Dataset, scale: Scale, seed: int) -> dict[str, Any]:
    """Train and judge the network with an objective; "log_p" holds log p(x) of the test data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = program(bits.train.x.float())
    done = fit(
        vae,
        bits,
        objective=objective,
        optim=partial(adam, lr=1e-3),
        epochs=scale.epochs,
        batch_size=24,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    device = next(vae.parameters()).device
    # The file holds the test images digit by digit.
    seen, x = (
        part.x[:: len(part) // scale.num_test].float().to(device)
        for part in (bits.train, bits.test)
    )
    estimate = evaluation.importance_sampling(
        vae.model, vae.guide, x, num_samples=scale.num_samples
    )
    return {
        "training_elbo_nats": evaluation.elbo(
            vae.model, vae.guide, seen, num_particles=10
        ).elbo_nats,
        "test_elbo_nats": evaluation.elbo(vae.model, vae.guide, x, num_particles=10).elbo_nats,
        "test_log_likelihood_nats": estimate.mean,
        "test_log_likelihood_standard_error": estimate.standard_error,
        "training_seconds": done.seconds,
        "log_p": estimate.log_p.cpu().double(),
    }


def gains(log_p: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return how much better each row is than the one it beats in the paper, on the same data."""
    found = []
    for better, worse in ORDER:
        gain = log_p[better] - log_p[worse]
        error = gain.std().item() / math.sqrt(len(gain))
        row = {"gain_nats": gain.mean().item(), "standard_error": error}
        found.append({"better": better, "worse": worse, **row})
    return found


def table(rows: Mapping[str, Any], order: list[dict[str, Any]]) -> list[str]:
    """Return lines of Markdown."""
    lines = [
        "| objective | log p(x), nats | test ELBO | training ELBO | published | training, s |",
        "| --- " * 6 + "|",
    ]
    for name, row in rows.items():
        published = PUBLISHED_TRAINING_ELBO_NATS.get(name, "")
        lines.append(
            f"| {name} | {row['test_log_likelihood_nats']:.2f} ± "
            f"{row['test_log_likelihood_standard_error']:.2f} | {row['test_elbo_nats']:.2f} | "
            f"{row['training_elbo_nats']:.2f} | {published} | {row['training_seconds']:.0f} |"
        )
    for row in order:
        lines.append(
            f"\n{row['better']} over {row['worse']}: {row['gain_nats']:+.2f} ± "
            f"{row['standard_error']:.2f} nats"
        )
    return lines


def main(
    data_root: Path,
    scale: Literal["smoke", "cpu", "paper"] = "cpu",
    seed: int = 0,
    name: str = "mnih2016_vimco",
) -> None:
    """Train and judge with every objective; print the table and write the record."""
    chosen = SCALES[scale]
    bits = data(data_root, chosen.num_train)
    rows: dict[str, Any] = {}
    log_p = {}
    for title, objective in OBJECTIVES.items():
        rows[title] = run(objective(), bits, chosen, seed)
        log_p[title] = rows[title].pop("log_p")
        print(f"{title}: {rows[title]['test_log_likelihood_nats']:.2f} nats", file=sys.stderr)
    order = gains(log_p)
    path = record.write(
        name,
        {
            "protocol": " ".join(__doc__.partition("FOLDER\n\n")[2].split()),
            "command": " ".join(["python", *sys.argv]),
            "scale": {"name": scale, **chosen._asdict()},
            "published_scale": SCALES["paper"]._asdict(),
            "published_training_elbo_nats": PUBLISHED_TRAINING_ELBO_NATS,
            "seed": seed,
            "rows": rows,
            "order": order,
        },
    )
    print("\n".join(table(rows, order)))
    print(path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
