"""Which likelihood gives pixels most probability? One network and grey faces, in bits per dim.

    python experiments/likelihoods.py --scale smoke|cpu|paper --data_root FOLDER

No paper is held against: the numbers say which of these likelihoods to take for grey images. The
data are the Olivetti faces, 40 persons with ten images each, averaged over squares of pixels and
rounded to the levels 0 to 255: of each person seven images are for training, which are mirrored as
well, one is for validation and two are for the test. The network, the prior, the posterior and the
schedule are the same for all rows; the weights with the best validation bound stay.

All numbers bound the same quantity from above, the bits of a pixel's level: -log2 P(x) / D, by
importance sampling. Likelihoods of levels give P(x) as it is. Densities of pixels in [0, 1] bound
it where the levels are dequantised (Uria, Murray & Larochelle, 2013; Theis, van den Oord & Bethge,
2016): log2 P(x) >= E[log2 p((x + u) / 256)] - D log2 256, with u uniform in [0, 1)^D, so 8 bits are
added. A density of pixels that are only rescaled, x / 255, bounds nothing: it may grow without end
at 256 points that have no volume. Such rows are refused, with the reason.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from scipy.io import loadmat
from study import ScaleName, Study, chosen, judge
from torch import Tensor

from pyro_vae import VAE, datasets, fit
from pyro_vae.components import (
    MLP,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    LogitNormal,
    Normal,
    SharedScale,
)
from pyro_vae.engine import AsFloat, Dequantize, Observation, Rescale
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.engine.optimizers import adam

LEVELS = 255
_PERSONS, _SIDE = 40, 64


class Row(NamedTuple):
    """A likelihood, and what it sees of the stored levels."""

    likelihood: Callable[..., Any]
    observation: Observation


TABLE = {
    "Normal": Row(Normal, Dequantize(LEVELS)),
    "Normal, one scale": Row(
        partial(Normal, scale=partial(SharedScale, initial=0.1)), Dequantize(LEVELS)
    ),
    "LogitNormal": Row(LogitNormal, Dequantize(LEVELS)),
    "ContinuousBernoulli": Row(ContinuousBernoulli, Dequantize(LEVELS)),
    "DiscretizedLogisticMixture": Row(
        partial(DiscretizedLogisticMixture, num_components=5, levels=LEVELS), AsFloat(LEVELS)
    ),
    "Categorical": Row(partial(Categorical, num_categories=LEVELS + 1), AsFloat(LEVELS)),
    # What is often reported, and compares with nothing above.
    "ContinuousBernoulli, rescaled": Row(ContinuousBernoulli, Rescale(LEVELS)),
    "Bernoulli, rescaled": Row(Bernoulli, Rescale(LEVELS)),
}

# Of each pair, how much more probable the first makes the test data.
PAIRS = [
    ("LogitNormal", "Normal"),
    ("Normal", "Normal, one scale"),
    ("Normal", "ContinuousBernoulli"),
    ("DiscretizedLogisticMixture", "Normal"),
    ("DiscretizedLogisticMixture", "Categorical"),
]


class Scale(NamedTuple):
    """How large the images are, and how long is trained."""

    side: int
    num_persons: int
    epochs: int
    patience: int
    num_samples: int
    hidden: tuple[int, ...] = (100, 100)
    left_out: tuple[str, ...] = ()


_TOO_MANY = ("Normal, one scale", "LogitNormal", "DiscretizedLogisticMixture")

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(4, 4, 2, 2, 10, (8,), _TOO_MANY),
    "cpu": Scale(16, 40, 80, 20, 500),
    "paper": Scale(32, 40, 400, 50, 5_000),
}

COLUMNS = {
    "bits_per_dim": "bits per dim",
    "elbo_bits_per_dim": "of the ELBO",
    "added_bits": "of them added",
    "rate_nats": "KL, nats",
    "active_units": "active units",
    "training_seconds": "training, s",
}


def faces(root: Path, side: int, num_persons: int = _PERSONS) -> datasets.Dataset:
    """Return the Olivetti faces as levels, ``[N, 1, side, side]``; side divides 64."""
    columns = torch.from_numpy(loadmat(root / "olivetti" / "olivettifaces.mat")["faces"])
    upright = columns.T.reshape(_PERSONS, -1, _SIDE, _SIDE)[:num_persons].mT.float()
    block = _SIDE // side
    squares = upright.unflatten(-1, (side, block)).unflatten(-3, (side, block))
    levels = squares.mean((-3, -1)).round().to(torch.uint8).unsqueeze(2)
    train, validation, test = (part.flatten(0, 1) for part in levels.split([7, 1, 2], 1))
    train = torch.cat([train, train.flip(-1)])
    parts = (datasets.Data(part) for part in (train, validation, test))
    return datasets.Dataset("Olivetti faces", *parts, levels=LEVELS)


def added_bits(row: Row, event_shape: tuple[int, ...]) -> float:
    """Return the bits per dim between a row's numbers and those of levels.

    Raises:
        ValueError: If its numbers bound no probability of levels; says why.
    """
    family, observation = row.likelihood(event_shape), row.observation
    discrete = bool(family(torch.zeros(family.raw_shape)).support.is_discrete)
    if discrete and isinstance(observation, AsFloat):
        return 0.0
    if not discrete and isinstance(observation, Dequantize):
        return math.log2(observation.levels + 1)
    if discrete:
        raise ValueError(
            f"{observation} under a distribution of whole numbers, which most of its values are "
            "not, so what it gives them is no probability of an image; give it levels (AsFloat)"
        )
    raise ValueError(
        f"{observation} under a density, which can grow without end at the values that levels "
        "take, so it bounds no probability of an image; dequantise them (Dequantize)"
    )


def of_levels(found: Mapping[str, Any], added: float, num_dims: int) -> dict[str, Any]:
    """Return what ``judge`` found in terms of probabilities of levels.

    Args:
        found: Of observations.
        added: Bits per dim to add.
        num_dims: D.
    """
    nats = added * num_dims * math.log(2)
    per_dim = num_dims * math.log(2)
    nll, elbo = found["nll_nats"] + nats, found["elbo_nats"] - nats
    return {
        **found,
        "log_p": found["log_p"] - nats,
        "nll_nats": nll,
        "elbo_nats": elbo,
        "distortion_nats": found["distortion_nats"] + nats,
        "bits_per_dim": nll / per_dim,
        "bits_per_dim_standard_error": found["nll_nats_standard_error"] / per_dim,
        "elbo_bits_per_dim": -elbo / per_dim,
        "added_bits": added,
    }


def program(row: Row, x: Tensor, hidden: tuple[int, ...]) -> VAE:
    """Return the network with a row's likelihood, started at observations ``x``."""
    network = partial(MLP, hidden=hidden)
    return VAE.assemble(
        tuple(x.shape[1:]), (20,), likelihood=row.likelihood, network=network, data=x
    )


def run(row: Row, images: datasets.Dataset, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table."""
    scale = study.scale
    train, test = (
        observe_once(part, row.observation, seed=OBSERVATION_SEED + place, device="cpu").x
        for place, part in ((0, images.train), (2, images.test))
    )
    vae = program(row, train, scale.hidden)
    done = fit(
        vae,
        images,
        optim=partial(adam, lr=1e-3),
        observation=row.observation,
        epochs=scale.epochs,
        patience=scale.patience,
        batch_size=20,
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    found = judge(vae, test, num_samples=scale.num_samples)
    return {
        **of_levels(found, added_bits(row, images.event_shape), test[0].numel()),
        "best_epoch": done.best_epoch,
        "training_seconds": done.seconds,
    }


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and judge what compares, and say why the rest does not; write the record."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        images = faces(data_root, study.scale.side, study.scale.num_persons)
        refused = {}
        for title, row in chosen(TABLE, rows, left_out=study.scale.left_out).items():
            try:
                added_bits(row, images.event_shape)
            except ValueError as reason:
                refused[title] = str(reason)
            else:
                study.measure(title, partial(run, row, images, study))
        study.note(refused=refused)
        study.order(PAIRS)
        if study.rows:
            study.show(COLUMNS)
        print(*(f"\n{title} is refused: {reason}." for title, reason in refused.items()), sep="\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
