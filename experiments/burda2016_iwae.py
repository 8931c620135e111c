"""Do more particles train a better model? Table 1 of the importance-weighted autoencoders.

    python experiments/burda2016_iwae.py --scale smoke|cpu|paper --data_root FOLDER

Held against Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), table 1, one
stochastic layer, dynamically binarised MNIST: -log p(x) of the test set in nats, and active units.

As published: two tanh layers of 200 on each side of 50 latents, Glorot's initial weights, the
output bias at the data's logits, 59,600 training images, batch 20, Adam with epsilon 1e-4, eight
stages of 3^i epochs at the rate 1e-3 * 10^(-i / 7); -log p(x) from 5,000 samples; a unit is active
if the variance of its posterior mean is above 0.01. Otherwise than published: the posterior's
scale is a softplus, where the paper has an exponential, and the test set is binarised once. With
one particle the two bounds are one, which is trained once. At the scale cpu the stages are cut
down to two or three epochs each, every tenth test image is judged with 1,000 samples, and the row
of the VAE with k = 50 is left out for its cost: only the order of the rows can be held against the
table, not the numbers.
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
from study import ScaleName, Study, judge, spread
from torch import Tensor, nn

from pyro_vae import VAE, datasets, fit
from pyro_vae.components import MLP
from pyro_vae.engine import Binarize, fast_arithmetic
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.inference import ELBO, IWAE, Objective, Schedule

_NUM_VALIDATION = 400  # as in the authors' code


class Row(NamedTuple):
    """A row of the table: an objective, and what was published for it."""

    objective: Callable[[int], Objective]
    num_particles: int
    published_nll_nats: float
    published_active_units: int


TABLE = {
    "VAE, k = 1": Row(ELBO, 1, 86.76, 19),
    "VAE, k = 5": Row(ELBO, 5, 86.47, 20),
    "VAE, k = 50": Row(ELBO, 50, 86.35, 20),
    "IWAE, k = 5": Row(IWAE, 5, 85.54, 22),
    "IWAE, k = 50": Row(IWAE, 50, 84.78, 25),
}

# Which row is published as the better one, by more than its own reproductions scatter.
ORDER = [
    ("IWAE, k = 5", "VAE, k = 1"),
    ("IWAE, k = 5", "VAE, k = 5"),
    ("IWAE, k = 50", "VAE, k = 5"),
    ("IWAE, k = 50", "VAE, k = 50"),
    ("IWAE, k = 50", "IWAE, k = 5"),
]


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    stages: tuple[int, ...]  # epochs of each
    num_train: int
    num_test: int
    num_samples: int
    left_out: tuple[str, ...] = ()


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale((1,) * 2, 200, 20, 10),
    "cpu": Scale((2, 2, 2, 2, 3, 3, 3, 3), 59_600, 1_000, 1_000, ("VAE, k = 50",)),
    "paper": Scale(tuple(3**i for i in range(8)), 59_600, 10_000, 5_000),
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "active_units": "active units",
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


def program(x: Tensor) -> VAE:
    """Return the paper's network with one stochastic layer, started at the mean of ``x``."""
    tanh = partial(MLP, hidden=(200, 200), activation=nn.Tanh)
    vae = VAE.assemble(tuple(x.shape[1:]), (50,), network=tanh)
    for module in vae.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    vae.likelihood.start_at(x.mean(0))
    return vae


def data(root: Path, scale: Scale) -> datasets.Dataset:
    """Return MNIST with the authors' 59,600 training images, or the first of them."""
    mnist = datasets.load("mnist", root=root)
    x = torch.cat([mnist.train.x, mnist.validation.x])
    train = datasets.Data(x[:-_NUM_VALIDATION][: scale.num_train])
    validation = datasets.Data(x[-_NUM_VALIDATION:])
    return replace(mnist, train=train, validation=validation)


def train(
    objective: Objective, mnist: datasets.Dataset, scale: Scale, seed: int
) -> tuple[VAE, float]:
    """Return a program trained by an objective, and the seconds that took."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = program(mnist.train.x / 255)
    # The authors' gradients are sums over the batch, as ours are, which epsilon is held against.
    optim = partial(torch.optim.Adam, lr=1e-3, eps=1e-4)
    done = fit(
        vae,
        mnist,
        objective=objective,
        optim=optim,
        schedule=Stages(scale.stages),
        observation=Binarize(255),
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
        vae, seconds = train(row.objective(row.num_particles), mnist, study.scale, study.seed)
        found = judge(vae, x, num_samples=study.scale.num_samples)
    return {**found, "training_seconds": seconds}


def main(data_root: Path, scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Train and judge every row; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        mnist = data(data_root, study.scale)
        seen = observe_once(mnist.test, Binarize(255), seed=OBSERVATION_SEED + 2, device="cpu").x
        x = spread(seen, study.scale.num_test)  # in the file, the first half is the easier one
        for title, row in TABLE.items():
            if title in study.scale.left_out:
                continue
            published = {
                "nll_nats": row.published_nll_nats,
                "active_units": row.published_active_units,
            }
            study.measure(title, partial(run, row, mnist, x, study), published=published)
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
