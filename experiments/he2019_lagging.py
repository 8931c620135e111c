"""Which cure keeps a strong decoder from ignoring its latents? Omniglot, ten ways to train.

    python experiments/he2019_lagging.py --scale smoke|cpu|paper --data_root FOLDER

Held against Lagging Inference Networks and Posterior Collapse in Variational Autoencoders (He,
Spokoyny, Neubig & Berg-Kirkpatrick, 2019), table 1, Omniglot: -log p(x), KL and mutual information.
Free bits are of Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al.,
2016), skip connections of Avoiding Latent Variable Collapse with Generative Skip Models (Dieng et
al., 2019), the prior of which an independent posterior stays away is of Preventing Posterior
Collapse with delta-VAEs (Razavi et al., 2019): no numbers of theirs are held against here. Free
bits leave 5 nats free, and that prior commits to 5.

As published: 32 latents, a decoder that sees the pixels before each pixel, images binarised
dynamically for training and once for the test, 23,000 / 1,345 of them, batch 50, Adam at 1e-3;
annealing moves the KL's weight from 0.1 to 1 over 10 epochs; -log p(x) is from 500 samples.
Otherwise than published, at every scale: the decoder is a masked dense network of one layer, where
the paper has 13 layers of gated convolutions, and the encoder is dense as well; the images are
scaled down from the original ones by area, in another way than the paper's, and split by their
drawers; the rate is constant; mutual information is of all judged data together, the paper's of
50 at a time, which bounds it by 3.9 nats; aggressive training takes a new batch of the epoch in
every step, where the paper's encoder takes further ones, so that its decoder takes fewer steps in
as many epochs. At the scale cpu the row has 16 epochs more than the others' four and at most ten
steps of the encoder in a row, not a hundred: its decoder takes about half as many steps as theirs.
So the numbers do not compare with the published ones, only what each cure does to the KL, to mutual
information and to -log p(x) does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, chosen, judge, spread
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit, laboratory
from pyro_vae.components import (
    MLP,
    AutoregressiveBernoulli,
    AutoregressiveNormal,
    Family,
    SkipMLP,
    StandardNormal,
)
from pyro_vae.components.conditional import Network
from pyro_vae.engine import Binarize, Turns
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import (
    AnalyticELBO,
    BetaVAE,
    Constant,
    FreeBits,
    Layers,
    Linear,
    Objective,
    Scheduled,
)

_LATENTS, _WIDTH, _CONTEXT = (32,), 800, 64
_RATE_NATS = 5.0  # what free bits leave free, and what the prior of the delta-VAE commits to
_NUM_VALIDATION = 1_345
_TRAINING_DRAWERS = 15  # of the twenty that drew each character


class Scale(NamedTuple):
    """How much of the published protocol is run.

    The aggressive row has ``most_in_row`` steps of the encoder, and ``aggressive_epochs`` more.
    """

    epochs: int
    warm_up_epochs: int
    num_train: int
    num_test: int
    num_samples: int
    most_in_row: int = 100
    aggressive_epochs: int = 0
    left_out: tuple[str, ...] = ()


class Row(NamedTuple):
    """A row of the table: how a decoder is kept from ignoring z, and what was published for it."""

    objective: Callable[[Scale], Objective]
    published_nll_nats: float | None = None
    published_rate_nats: float | None = None
    published_mutual_information_nats: float | None = None
    decoder: Network = MLP
    prior: Callable[[tuple[int, ...]], Family] = StandardNormal
    turns: Callable[[Scale], Turns | None] = lambda scale: None

    @property
    def published(self) -> dict[str, float]:
        """What was published, by the names of what is measured."""
        found = {
            "nll_nats": self.published_nll_nats,
            "rate_nats": self.published_rate_nats,
            "mutual_information_nats": self.published_mutual_information_nats,
        }
        return {name: value for name, value in found.items() if value is not None}


def plain(scale: Scale) -> Objective:
    return AnalyticELBO()


def annealed(scale: Scale) -> Objective:
    return BetaVAE(Scheduled(Linear(0.1, 1.0, until=scale.warm_up_epochs / scale.epochs)))


def weighed(beta: float) -> Callable[[Scale], Objective]:
    return lambda scale: BetaVAE(beta)


def free_bits(scale: Scale) -> Objective:
    return FreeBits(_RATE_NATS, Layers())


def aggressive(scale: Scale) -> Turns:
    return laboratory.Aggressive(window=min(10, scale.most_in_row // 2), longest=scale.most_in_row)


TABLE = {
    "plain": Row(plain, 89.41, 1.5, 1.4),
    "annealed": Row(annealed, 89.20, 2.1, 1.9),
    "aggressive": Row(plain, 89.03, 2.5, 2.2, turns=aggressive),
    "beta = 0.2": Row(weighed(0.2), 105.19, 69.1, 3.9),
    "beta = 0.4": Row(weighed(0.4), 95.89, 28.0, 3.9),
    "beta = 0.6": Row(weighed(0.6), 92.16, 20.4, 3.9),
    "beta = 0.8": Row(weighed(0.8), 89.27, 9.6, 3.9),
    "free bits": Row(free_bits),
    "skip": Row(plain, decoder=SkipMLP),
    "delta": Row(plain, prior=partial(AutoregressiveNormal, rate=_RATE_NATS)),
}

# Which row is published as the better one, or is here to be so.
ORDER = [(better, "plain") for better in ("annealed", "aggressive", "free bits", "skip", "delta")]

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        1, 1, 100, 20, 10, 10, 0, ("annealed", *(f"beta = 0.{tenths}" for tenths in (2, 4, 6, 8)))
    ),
    "cpu": Scale(4, 2, 23_000, 400, 200, 10, 16, ("beta = 0.2", "beta = 0.6")),
    "paper": Scale(100, 10, 23_000, 8_115, 500),
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "rate_nats": "KL, nats",
    "mutual_information_nats": "mutual information, nats",
    "active_units": "active units",
    "training_seconds": "training, s",
}


def program(row: Row, x: Tensor) -> VAE:
    """Return the network of a row, whose inputs are standardised as ``x``."""
    decoder = partial(AutoregressiveBernoulli, hidden_dims=(_WIDTH,), num_context=_CONTEXT)
    return VAE.assemble(
        tuple(x.shape[1:]),
        _LATENTS,
        prior=row.prior,
        likelihood=decoder,
        decoder=row.decoder,
        data=x,
    )


def data(root: Path, num_train: int) -> datasets.Dataset:
    """Return the 28x28 images of ``omniglot_28x28.npz``: 15 drawers train, five others test."""
    images = np.load(root / "omniglot" / "omniglot_28x28.npz")["images"]
    x = torch.from_numpy(images).unsqueeze(2)
    train, test = (part.flatten(0, 1) for part in x.tensor_split([_TRAINING_DRAWERS], dim=1))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held = len(train) * _NUM_VALIDATION // 24_345
    parts = (train[order[held:][:num_train]], train[order[:held]], test)
    return datasets.Dataset("omniglot", *map(datasets.Data, parts), levels=255)


def run(row: Row, images: datasets.Dataset, x: Tensor, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table, on the test data ``x``."""
    scale = study.scale
    vae, turns = program(row, images.train.x / 255), row.turns(scale)
    done = fit(
        vae,
        images,
        objective=row.objective(scale),
        optim=partial(adam, lr=1e-3),
        schedule=Constant(),
        observation=Binarize(255),
        turns=turns,
        weights="last",
        epochs=scale.epochs + (scale.aggressive_epochs if turns else 0),
        batch_size=50,
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    x = x.to(next(vae.parameters()).device)
    information = evaluation.mutual_information(vae, x)
    return {
        **judge(vae, x, num_samples=scale.num_samples),
        "mutual_information_nats": information.nats,
        "mutual_information_nats_standard_error": information.nats.standard_error,
        "mutual_information_ceiling_nats": information.ceiling,
        "training_seconds": done.seconds,
    }


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
        images = data(data_root, study.scale.num_train)
        seen = observe_once(images.test, Binarize(255), seed=OBSERVATION_SEED + 2, device="cpu").x
        x = spread(seen, study.scale.num_test)  # the file has the characters one after the other
        for title, row in table.items():
            study.measure(title, partial(run, row, images, x, study), published=row.published)
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
