"""MNIST as binarised by Larochelle & Murray (2011), and how several papers train on it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pyro_vae import VAE, datasets, fit
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import ELBO, Cosine, KLWeight, Linear, Scheduled

__all__ = ["load", "train"]


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


def train(
    vae: VAE,
    bits: datasets.Dataset,
    *,
    epochs: int,
    warm_up: int,
    patience: int,
    learning_rate: float,
    final_rate: float,
    seed: int,
) -> float:
    """Train as Tomczak & Welling (2018) and van den Berg et al. (2018); return the seconds it took.

    The weight of the KL rises from zero to one, and the weights with the best validation ELBO
    stay.

    Args:
        vae: What is trained.
        bits: The data.
        epochs: The most that are run.
        warm_up: The weight of the KL is one from this epoch on.
        patience: After so many epochs without a better validation ELBO the run ends.
        learning_rate: Of Adam.
        final_rate: The part of the learning rate that is left at the end, on half a cosine wave.
        seed: Of permutations and noise.
    """
    weighted = KLWeight(Scheduled(Linear(0.0, 1.0, until=warm_up / epochs)))
    done = fit(
        weighted(vae.model),
        weighted(vae.guide),
        bits,
        objective=ELBO(),
        optim=partial(adam, lr=learning_rate),
        schedule=Cosine(final=final_rate),
        epochs=epochs,
        batch_size=100,
        patience=patience,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    return done.seconds
