"""Do more particles train a better model? Table 1 of the importance-weighted autoencoders.

    python experiments/burda2016_iwae.py --scale smoke|cpu|paper --data_root FOLDER
    python experiments/burda2016_iwae.py --rows "[IV]*" ...  # one layer; "two layers*" are two

Held against Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), table 1, one
and two stochastic layers, dynamically binarised MNIST: -log p(x) of the test set in nats, and
active units, of each layer where there are two.

As published: two tanh layers of 200 on each side of 50 latents or, with two layers, of 100 latents
that have two tanh layers of 100 between them and 50 others; Glorot's initial weights, the
output bias at the data's logits, 59,600 training images, batch 20, Adam with epsilon 1e-4, eight
stages of 3^i epochs at the rate 1e-3 * 10^(-i / 7); -log p(x) from 5,000 samples; a unit is active
if the variance of its posterior mean is above 0.01. Otherwise than published: the posterior's
scale is a softplus, where the paper has an exponential, and the test set is binarised once. With
one particle the two bounds are one, which is trained once. At the scale cpu the stages are cut
down to two or three epochs each, every tenth test image is judged with 1,000 samples, and the rows
of the VAE with k = 50, and with two layers those of the VAE with k = 5 and of k = 50, are left out
for their cost: only the order of the rows can be held against the table, not the numbers.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, chosen, judge, spread
from torch import Tensor, nn

from pyro_vae import VAE, datasets, fit
from pyro_vae.components import MLP
from pyro_vae.engine import Binarize, fast_arithmetic
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.inference import ELBO, IWAE, Objective, Schedule
from pyro_vae.models import HierarchicalVAE

_NUM_VALIDATION = 400  # as in the authors' code


class Row(NamedTuple):
    """A row of the table: an objective, and what was published for it."""

    objective: Callable[[int], Objective]
    num_particles: int
    published_nll_nats: float
    published_active_units: tuple[int, ...]  # of each layer, from the data up

    @property
    def num_layers(self) -> int:
        """How many stochastic layers there are."""
        return len(self.published_active_units)

    @property
    def published(self) -> dict[str, float]:
        """What was published, by the names of what is measured."""
        layers = enumerate(self.published_active_units, start=1)
        of_layers = {f"active_units_z{layer}": num for layer, num in layers}
        return {
            "nll_nats": self.published_nll_nats,
            "active_units": sum(self.published_active_units),
            **(of_layers if self.num_layers > 1 else {}),
        }


TABLE = {
    "VAE, k = 1": Row(ELBO, 1, 86.76, (19,)),
    "VAE, k = 5": Row(ELBO, 5, 86.47, (20,)),
    "VAE, k = 50": Row(ELBO, 50, 86.35, (20,)),
    "IWAE, k = 5": Row(IWAE, 5, 85.54, (22,)),
    "IWAE, k = 50": Row(IWAE, 50, 84.78, (25,)),
    "two layers: VAE, k = 1": Row(ELBO, 1, 85.33, (16, 5)),
    "two layers: VAE, k = 5": Row(ELBO, 5, 85.01, (17, 5)),
    "two layers: VAE, k = 50": Row(ELBO, 50, 84.78, (17, 5)),
    "two layers: IWAE, k = 5": Row(IWAE, 5, 83.89, (21, 5)),
    "two layers: IWAE, k = 50": Row(IWAE, 50, 82.90, (26, 7)),
}

# Which row is published as the better one, by more than its own reproductions scatter.
ORDER = [
    ("IWAE, k = 5", "VAE, k = 1"),
    ("IWAE, k = 5", "VAE, k = 5"),
    ("IWAE, k = 50", "VAE, k = 5"),
    ("IWAE, k = 50", "VAE, k = 50"),
    ("IWAE, k = 50", "IWAE, k = 5"),
    ("two layers: VAE, k = 1", "VAE, k = 1"),
    ("two layers: IWAE, k = 5", "IWAE, k = 5"),
    ("two layers: IWAE, k = 5", "two layers: VAE, k = 1"),
    ("two layers: IWAE, k = 50", "two layers: IWAE, k = 5"),
]


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    stages: tuple[int, ...]  # epochs of each
    num_train: int
    num_test: int
    num_samples: int
    left_out: tuple[str, ...] = ()


_TOO_MANY = tuple(row for row in TABLE if row not in ("IWAE, k = 5", "two layers: VAE, k = 1"))
_TOO_COSTLY = (
    "VAE, k = 50",
    "two layers: VAE, k = 5",
    "two layers: VAE, k = 50",
    "two layers: IWAE, k = 50",
)

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale((1,) * 2, 40, 20, 10, _TOO_MANY),
    "cpu": Scale((2, 2, 2, 2, 3, 3, 3, 3), 59_600, 1_000, 1_000, _TOO_COSTLY),
    "paper": Scale(tuple(3**i for i in range(8)), 59_600, 10_000, 5_000),
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "active_units": "active units",
    "active_units_z1": "of layer 1",
    "active_units_z2": "of layer 2",
    "training_seconds": "training, s",
}


@dataclass(frozen=True)
class Stages(Schedule):
    r"""The rate :math:`10^{-i / 7}` in stage i, each of so many epochs."""

    epochs: tuple[int, ...]

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        ends = [end / sum(self.epochs) for end in accumulate(self.epochs)]
        stage = min(bisect_right(ends, progress), len(ends) - 1)
        return 10.0 ** (-stage / 7)


def program(x: Tensor, num_layers: int = 1) -> VAE | HierarchicalVAE:
    """Return the paper's network with one or two stochastic layers, started at the mean of x."""
    tanh = partial(MLP, hidden=(200, 200), activation=nn.Tanh)
    between = partial(MLP, hidden=(100, 100), activation=nn.Tanh)
    shape = tuple(x.shape[1:])
    vae = (
        VAE.assemble(shape, (50,), network=tanh)
        if num_layers == 1
        else HierarchicalVAE.assemble(shape, ((100,), (50,)), network=(tanh, between))
    )
    for module in vae.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    vae.likelihood.start_at(x.mean(0))
    return vae


def data(root: Path, num_train: int) -> datasets.Dataset:
    """Return MNIST with the authors' 59,600 training images, or the first of them."""
    mnist = datasets.load("mnist", root=root)
    x = torch.cat([mnist.train.x, mnist.validation.x])
    train = datasets.Data(x[:-_NUM_VALIDATION][:num_train])
    validation = datasets.Data(x[-_NUM_VALIDATION:])
    return replace(mnist, train=train, validation=validation)


def train(
    row: Row, mnist: datasets.Dataset, scale: Scale, seed: int
) -> tuple[VAE | HierarchicalVAE, float]:
    """Return the trained program of a row, and the seconds that took."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = program(mnist.train.x / 255, row.num_layers)
    # The authors' gradients are sums over the batch, as ours are, which epsilon is held against.
    optim = partial(torch.optim.Adam, lr=1e-3, eps=1e-4)
    done = fit(
        vae,
        mnist,
        objective=row.objective(row.num_particles),
        optim=optim,
        schedule=Stages(scale.stages),
        observation=Binarize(255),
        weights="last",
        epochs=sum(scale.stages),
        batch_size=20,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    return vae, done.seconds


def run(row: Row, mnist: datasets.Dataset, x: Tensor, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table, on the test data ``x``."""
    # A step's products have k rows for each datum: fast ones are worth it at this batch size.
    with fast_arithmetic():
        vae, seconds = train(row, mnist, study.scale, study.seed)
        found = judge(vae, x, num_samples=study.scale.num_samples)
    return {**found, "training_seconds": seconds}


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and judge every row; print the table, write the record, draw the figure."""
    table = chosen(TABLE, rows, left_out=SCALES[scale].left_out)
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        mnist = data(data_root, study.scale.num_train)
        seen = observe_once(mnist.test, Binarize(255), seed=OBSERVATION_SEED + 2, device="cpu").x
        x = spread(seen, study.scale.num_test)  # in the file, the first half is the easier one
        for title, row in table.items():
            study.measure(title, partial(run, row, mnist, x, study), published=row.published)
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
