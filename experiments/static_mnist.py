"""MNIST as binarised by Larochelle & Murray (2011), and how several papers train on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from study import judge
from torch import Tensor

from pyro_vae import VAE, datasets, fit
from pyro_vae.engine import fast_arithmetic
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import ELBO, Cosine, KLWeight, Linear, Scheduled

__all__ = ["load", "run"]


def load(root: Path, num_train: int, *, shape: tuple[int, ...] = (1, 28, 28)) -> datasets.Dataset:
    """Return the bits of ``binarized_mnist.npz``, ``[N, *shape]``.

    Args:
        root: The folder that has ``binarized_mnist``.
        num_train: How many of the 50,000 training images, from the first.
        shape: Of an image.
    """
    packed = np.load(root / "binarized_mnist" / "binarized_mnist.npz")
    train, validation, test = (
        datasets.Data(torch.from_numpy(np.unpackbits(packed[part], axis=1)).reshape(-1, *shape))
        for part in ("train", "valid", "test")
    )
    train = datasets.Data(train.x[:num_train])
    return datasets.Dataset("binarized MNIST", train, validation, test, levels=1)


class Scale(Protocol):
    """How long a row is trained, and how well it is judged.

    Attributes:
        epochs: The most that are run.
        warm_up: The weight of the KL is one from this epoch on.
        patience: After so many epochs without a better validation ELBO the run ends.
        learning_rate: Of Adam.
        final_rate: The part of the learning rate that is left at the end, on half a cosine wave.
        num_samples: Importance samples for each datum.
    """

    epochs: int
    warm_up: int
    patience: int
    learning_rate: float
    final_rate: float
    num_samples: int


def run(
    build: Callable[[], VAE], bits: datasets.Dataset, x: Tensor, scale: Scale, seed: int
) -> dict[str, Any]:
    """Build, train and judge a VAE as Tomczak & Welling (2018) and van den Berg et al. (2018).

    The weight of the KL rises from zero to one, and the weights with the best validation ELBO
    stay.

    Args:
        build: Returns what is trained.
        bits: The data.
        x: Those to judge on, ``[N, *shape]``.
        scale: How long and how well.
        seed: Of initial weights, permutations and noise.

    Returns:
        What ``judge`` does, and "training_seconds".
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = build()
    weighted = KLWeight(Scheduled(Linear(0.0, 1.0, until=scale.warm_up / scale.epochs)))
    with fast_arithmetic():
        done = fit(
            weighted(vae.model),
            weighted(vae.guide),
            bits,
            objective=ELBO(),
            optim=partial(adam, lr=scale.learning_rate),
            schedule=Cosine(final=scale.final_rate),
            epochs=scale.epochs,
            batch_size=100,
            patience=scale.patience,
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        found = judge(vae, x, num_samples=scale.num_samples)
    return {**found, "training_seconds": done.seconds}
