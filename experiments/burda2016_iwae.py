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

import math
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import record
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP
from pyro_vae.engine import Binarize, fast_arithmetic
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.evaluation import ImportanceEstimate
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


SCALES = {
    "smoke": Scale((1,) * 2, 200, 20, 10),
    "cpu": Scale((2, 2, 2, 2, 3, 3, 3, 3), 59_600, 1_000, 1_000, ("VAE, k = 50",)),
    "paper": Scale(tuple(3**i for i in range(8)), 59_600, 10_000, 5_000),
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


def judge(vae: VAE, x: Tensor, num_samples: int) -> tuple[dict[str, Any], ImportanceEstimate]:
    """Return what the table holds of a program, on test data ``x``, and the estimate itself."""
    start = time.perf_counter()
    x = x.to(next(vae.parameters()).device)
    estimate = evaluation.importance_sampling(vae.model, vae.guide, x, num_samples=num_samples)
    activity = evaluation.unit_activity(vae.model, vae.guide, x)["z"]
    found = {
        "nll_nats": -estimate.mean,
        "standard_error": estimate.standard_error,
        "elbo_nats": evaluation.elbo(vae.model, vae.guide, x, num_particles=10).elbo_nats,
        "active_units": activity.num_active,
        "evaluation_seconds": time.perf_counter() - start,
    }
    return found, estimate


def differences(estimates: Mapping[str, ImportanceEstimate]) -> list[dict[str, Any]]:
    """Return how much better each row is than the one it beats in the paper, on the same data."""
    found = []
    for better, worse in ORDER:
        if not {better, worse} <= estimates.keys():
            continue
        gain = (estimates[better].log_p - estimates[worse].log_p).cpu().double()
        found.append(
            {
                "better": better,
                "worse": worse,
                "gain_nats": gain.mean().item(),
                "standard_error": (gain.std() / math.sqrt(len(gain))).item(),
                "published_gain_nats": round(
                    TABLE[worse].published_nll_nats - TABLE[better].published_nll_nats, 2
                ),
            }
        )
    return found


def table(rows: Mapping[str, Any], gains: list[dict[str, Any]]) -> list[str]:
    """Return lines of Markdown."""
    lines = [
        "| objective | -log p(x), nats | published | active units | published | training, s |",
        "| --- " * 6 + "|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['nll_nats']:.2f} ± {row['standard_error']:.2f} | "
            f"{row['published_nll_nats']:.2f} | {row['active_units']} | "
            f"{row['published_active_units']} | {row['training_seconds']:.0f} |"
        )
    lines += ["", "| better | worse | gain, nats | published |", "| --- " * 4 + "|"]
    for gain in gains:
        lines.append(
            f"| {gain['better']} | {gain['worse']} | {gain['gain_nats']:+.2f} ± "
            f"{gain['standard_error']:.2f} | {gain['published_gain_nats']:+.2f} |"
        )
    return lines


def main(
    data_root: Path,
    scale: Literal["smoke", "cpu", "paper"] = "cpu",
    seed: int = 0,
    name: str = "burda2016_iwae",
) -> None:
    """Train and judge every row; print the table and write the record."""
    chosen = SCALES[scale]
    mnist = data(data_root, chosen)
    seen = observe_once(mnist.test, Binarize(255), seed=OBSERVATION_SEED + 2, device="cpu").x
    seen = seen[:: len(seen) // chosen.num_test]  # in the file, the first half is the easier one
    rows: dict[str, Any] = {}
    estimates = {}
    for title, (objective, num_particles, nll, active) in TABLE.items():
        if title in chosen.left_out:
            continue
        # A step's products have k rows for each datum: fast ones are worth it at this batch size.
        with fast_arithmetic():
            vae, seconds = train(objective(num_particles), mnist, chosen, seed)
            found, estimates[title] = judge(vae, seen, chosen.num_samples)
        published = {"published_nll_nats": nll, "published_active_units": active}
        rows[title] = {**found, **published, "training_seconds": seconds}
        print(f"{title}: {found['nll_nats']:.2f} nats, {seconds:.0f} s", file=sys.stderr)
    gains = differences(estimates)
    path = record.write(
        name,
        {
            "protocol": " ".join(__doc__.partition("FOLDER\n\n")[2].split()),
            "command": " ".join(["python", *sys.argv]),
            "scale": {"name": scale, **chosen._asdict()},
            "published_scale": SCALES["paper"]._asdict(),
            "seed": seed,
            "rows": rows,
            "order": gains,
        },
    )
    print("\n".join(table(rows, gains)))
    print(path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
