"""Do more layers of convolutional latents make a better model? MNIST, and a part of CIFAR-10.

    python experiments/topdown.py --scale smoke|cpu|paper --data_root FOLDER

Held against what hierarchies of convolutional latents have reached. Static MNIST: 79.24, 78.52 and
78.30 nats with 3, 6 and 12 layers of a convolutional ladder, -log p(x) from 1,000 samples, by the
README of the repository addtt/ladder-vae-pytorch. CIFAR-10: 3.32 bits per dimension with 15 layers,
in the same place; 2.87 in Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them
on Images (Child, 2021) with 39 million parameters.

A top-down hierarchy, whose layers are images of 14, 7, 4 and 1 pixels across for MNIST, and of 16,
8, 4 and 1 for CIFAR-10, lowest first. MNIST as binarised by Larochelle & Murray (2011), a
Bernoulli, in nats; CIFAR-10's integers 0 to 255, a mixture of ten discretized logistics with
coupled channels, in bits per dimension of -log p(x) and of the bound. Adam at 1e-3 with clipped
gradients; the KL's weight rises from 0 to 1 over the first tenth of the run, at the scale cpu over
the first half, as a tenth would be a hundred steps. Of CIFAR-10 there are
10,000 images to train on and 1,000 to test with, where the published numbers are of 50,000 and
10,000: those at the scale paper are no more comparable than that. At the scale cpu there are a few
channels, some of the images and a few epochs; only the order of the depths is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from sonderby2016_ladder import with_kl
from static_mnist import load
from study import ScaleName, Study, chosen, judge, spread
from torch import Tensor

from pyro_vae import datasets, fit
from pyro_vae.components import Bernoulli, DiscretizedLogisticMixture, Family
from pyro_vae.engine import AsFloat
from pyro_vae.inference import ELBO, KLWeight, Linear, Scheduled
from pyro_vae.models import TopDownVAE

Shape = tuple[int, ...]
_NUM_VALIDATION = 1_000


class Row(NamedTuple):
    """A hierarchy on a data set: how many layers of which latents, and what was published."""

    data: str
    layers: tuple[tuple[int, Shape], ...]  # how many of each shape, from the data up
    published_nll_nats: float | None = None
    published_bits_per_dim: float | None = None

    @property
    def latent_shapes(self) -> tuple[Shape, ...]:
        """The shape of each layer's latent, from the data up."""
        return tuple(shape for num, shape in self.layers for _ in range(num))

    @property
    def published(self) -> dict[str, float]:
        """What was published, by the names of what is measured."""
        found = {
            "nll_nats": self.published_nll_nats,
            "bits_per_dim": self.published_bits_per_dim,
        }
        return {name: value for name, value in found.items() if value is not None}


TABLE = {
    "MNIST, 1 layer": Row("mnist", ((1, (16, 7, 7)),)),
    "MNIST, 3 layers": Row("mnist", ((1, (4, 14, 14)), (1, (8, 7, 7)), (1, (16, 4, 4))), 79.24),
    "MNIST, 6 layers": Row(
        "mnist", ((2, (4, 14, 14)), (2, (8, 7, 7)), (1, (16, 4, 4)), (1, (32, 1, 1))), 78.52
    ),
    "MNIST, 12 layers": Row(
        "mnist", ((4, (4, 14, 14)), (4, (8, 7, 7)), (3, (16, 4, 4)), (1, (32, 1, 1))), 78.30
    ),
    "CIFAR-10, 3 layers": Row("cifar10", ((1, (8, 16, 16)), (1, (16, 8, 8)), (1, (16, 4, 4)))),
    "CIFAR-10, 6 layers": Row(
        "cifar10", ((2, (8, 16, 16)), (2, (16, 8, 8)), (1, (16, 4, 4)), (1, (32, 1, 1)))
    ),
    "CIFAR-10, 15 layers": Row(
        "cifar10",
        ((6, (8, 16, 16)), (5, (16, 8, 8)), (3, (16, 4, 4)), (1, (32, 1, 1))),
        published_bits_per_dim=3.32,
    ),
}

ORDER = [
    ("MNIST, 3 layers", "MNIST, 1 layer"),
    ("MNIST, 6 layers", "MNIST, 3 layers"),
    ("MNIST, 12 layers", "MNIST, 6 layers"),
    ("CIFAR-10, 6 layers", "CIFAR-10, 3 layers"),
    ("CIFAR-10, 15 layers", "CIFAR-10, 6 layers"),
]


class Scale(NamedTuple):
    """How much is run."""

    channels: int
    epochs: int
    warm_up: float
    num_train_mnist: int
    num_train_cifar10: int
    num_test: int
    num_samples: int
    left_out: tuple[str, ...] = ()


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        4, 1, 0.5, 64, 64, 4, 2,
        ("MNIST, 3 layers", "MNIST, 6 layers", "MNIST, 12 layers", "CIFAR-10, 6 layers",
         "CIFAR-10, 15 layers"),
    ),
    "cpu": Scale(16, 8, 0.5, 10_000, 5_000, 100, 100, ("MNIST, 12 layers", "CIFAR-10, 15 layers")),
    "paper": Scale(64, 400, 0.1, 50_000, 10_000, 1_000, 1_000),
}  # fmt: skip

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "elbo_nats": "ELBO, nats",
    "bits_per_dim": "-log p(x), bits per dim",
    "elbo_bits_per_dim": "-ELBO, bits per dim",
    "active_units": "units with a KL above 0.01",
    "training_seconds": "training, s",
}

LIKELIHOODS: dict[str, Callable[[Shape], Family]] = {
    "mnist": Bernoulli,
    "cifar10": partial(DiscretizedLogisticMixture, num_components=10, levels=255),
}


def program(row: Row, x: Tensor, channels: int) -> TopDownVAE:
    """Return the hierarchy of a row, which starts from the data ``x``."""
    return TopDownVAE.assemble(
        tuple(x.shape[1:]),
        row.latent_shapes,
        likelihood=LIKELIHOODS[row.data],
        channels=channels,
        data=x,
    )


def mnist(root: Path, num_train: int) -> datasets.Dataset:
    """Return the statically binarised MNIST, with fewer images for validation."""
    bits = load(root, num_train)
    return replace(bits, validation=datasets.Data(spread(bits.validation.x, _NUM_VALIDATION)))


def cifar10(root: Path, num_train: int) -> datasets.Dataset:
    """Return a part of CIFAR-10, as stored in PNG files of a thousand images, one a row.

    The last thousand of the training images are for validation.
    """
    train = torch.cat([_png(root / "cifar10" / f"cifar10_batch_{part}.png") for part in range(10)])
    held = min(_NUM_VALIDATION, len(train) // 10)
    parts = (train[:-held][:num_train], train[-held:], _png(root / "cifar10/cifar10_batch_50.png"))
    return datasets.Dataset("part of CIFAR-10", *map(datasets.Data, parts), levels=255)


def _png(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.reshape(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def run(row: Row, images: datasets.Dataset, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table."""
    scale = study.scale
    vae = program(row, images.train.x.float(), scale.channels)
    warm = KLWeight(Scheduled(Linear(0.0, 1.0, until=scale.warm_up)))
    done = fit(
        warm(vae.model),
        warm(vae.guide),
        images,
        objective=ELBO(),
        optim=partial(torch.optim.Adam, lr=1e-3),
        observation=AsFloat(images.levels),
        weights="last",
        epochs=scale.epochs,
        batch_size=64,
        clip_norm=100.0,
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    x = spread(images.test.x, scale.num_test).float()
    found = in_unit(row, judge(vae, x, num_samples=scale.num_samples, count=with_kl))
    return {**found, "training_seconds": done.seconds}


def in_unit(row: Row, judged: dict[str, Any]) -> dict[str, Any]:
    """Return -log p(x) and the bound in the unit of the data set, nats or bits per dimension."""
    if row.data == "mnist":
        return {key: value for key, value in judged.items() if key != "bits_per_dim"}
    of_nat = judged["bits_per_dim"] / judged["nll_nats"]
    in_bits = {
        "bits_per_dim_standard_error": of_nat * judged["nll_nats_standard_error"],
        "elbo_bits_per_dim": -of_nat * judged["elbo_nats"],
        "elbo_bits_per_dim_standard_error": of_nat * judged["elbo_nats_standard_error"],
    }
    in_nats = ("nll_nats", "elbo_nats")
    rest = {key: value for key, value in judged.items() if not key.startswith(in_nats)}
    return {**rest, **in_bits}


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and judge every hierarchy; print the table, write the record, draw the figure."""
    table = chosen(TABLE, rows, left_out=SCALES[scale].left_out)
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        wanted = {row.data for row in table.values()}
        loaders = {
            "mnist": lambda: mnist(data_root, study.scale.num_train_mnist),
            "cifar10": lambda: cifar10(data_root, study.scale.num_train_cifar10),
        }
        images = {name: loaders[name]() for name in wanted}
        for title, row in table.items():
            found = partial(run, row, images[row.data], study)
            study.measure(title, found, published=row.published)
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
