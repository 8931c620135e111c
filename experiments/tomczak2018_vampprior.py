"""Does a prior made of posteriors give a better model? Three priors on statically binarised MNIST.

    python experiments/tomczak2018_vampprior.py --scale smoke|cpu|paper --data_root FOLDER

Held against VAE with a VampPrior (Tomczak & Welling, 2018), table 1, one layer of latents, static
MNIST: -log p(x) of the test set is 88.56 nats with a standard normal prior and 85.57 with a
VampPrior of 500 pseudo-inputs. The latter is as Pythae's README quotes it, whose own run gave
85.79. In the paper's figure of priors, for two layers of latents, a mixture of normals lies between
the two; of one layer no number is published.

As published: 40 latents, two gated layers of 300 on each side with He's initial weights, Adam at
5e-4, batch 100, the weight of the KL rising to one over 100 epochs, 2,000 epochs at most, ended by
50 without a better validation bound; -log p(x) from 5,000 samples. Otherwise than published: the
gradients are not normalised before Adam, the posterior's scale is a softplus in the place of a
bounded exponential, the encoder's inputs are standardised and the output starts at the data's
logits, the pseudo-inputs are squashed by a sigmoid and start at training images, and patience
counts from the first epoch. At the scale cpu the run is cut down to a few epochs at a larger rate
that falls to zero: only the order of the rows can be held against the paper, not the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import static_mnist
from jsonargparse import auto_cli
from study import ScaleName, Study, chosen, spread
from torch import Tensor

from pyro_vae import VAE, datasets
from pyro_vae.components import GatedMLP, MixtureOfNormals, StandardNormal, VampPrior, he


class Row(NamedTuple):
    """A row of the table: a prior from K, and what was published for it."""

    prior: Callable[[int], Callable[..., Any]]
    published_nll_nats: float | None


TABLE = {
    "standard normal": Row(lambda k: StandardNormal, 88.56),
    "mixture of normals": Row(lambda k: partial(MixtureOfNormals, num_components=k), None),
    "VampPrior": Row(lambda k: partial(VampPrior, num_pseudo_inputs=k), 85.57),
}

# Which row is published as the better one.
ORDER = [
    ("VampPrior", "standard normal"),
    ("VampPrior", "mixture of normals"),
    ("mixture of normals", "standard normal"),
]


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    epochs: int
    warm_up: int
    patience: int
    learning_rate: float
    final_rate: float
    num_train: int
    num_test: int
    num_samples: int
    num_components: int = 500
    hidden: tuple[int, ...] = (300, 300)
    left_out: tuple[str, ...] = ()


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(2, 1, 2, 1e-3, 0.0, 200, 20, 10, 10, (30, 30), ("mixture of normals",)),
    "cpu": Scale(12, 2, 12, 1e-3, 0.0, 50_000, 1_000, 500, hidden=(128, 128)),
    "paper": Scale(2_000, 100, 50, 5e-4, 1.0, 50_000, 10_000, 5_000),
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "elbo_nats": "test ELBO, nats",
    "rate_nats": "KL, nats",
    "active_units": "active units",
    "training_seconds": "training, s",
}


def program(prior: Callable[..., Any], x: Tensor, hidden: tuple[int, ...]) -> VAE:
    """Return the paper's network with one layer of latents under a prior; ``x`` are the data."""
    gated = partial(GatedMLP, hidden=hidden, initialise=he)
    return VAE.assemble(tuple(x.shape[1:]), (40,), prior=prior, network=gated, data=x)


def run(row: Row, bits: datasets.Dataset, x: Tensor, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table, on the test data ``x``."""
    scale = study.scale
    prior = row.prior(scale.num_components)
    build = partial(program, prior, bits.train.x.float(), scale.hidden)
    return static_mnist.run(build, bits, x, scale, study.seed)


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and judge under every prior; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        bits = static_mnist.load(data_root, study.scale.num_train)
        x = spread(bits.test.x, study.scale.num_test).float()  # in the file, digit by digit
        for title, row in chosen(TABLE, rows, left_out=study.scale.left_out).items():
            nll = row.published_nll_nats
            published = None if nll is None else {"nll_nats": nll}
            study.measure(title, partial(run, row, bits, x, study), published=published)
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
