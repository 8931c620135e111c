"""Which layers of a hierarchy are used? Active units of five layers, with and without a ladder.

    python experiments/sonderby2016_ladder.py --scale smoke|cpu|paper --data_root FOLDER

Held against Ladder Variational Autoencoders (Sønderby et al., 2016), the first version on arXiv:
table 2, active units of each of five layers on MNIST, 21 < 37 < 61 < 81 in all; and of table 1
log p(x) before fine-tuning.

As published: 64, 32, 16, 8 and 4 latents, with two dense layers of 512, 256, 128, 64 and 32
between a layer and what lies below it, in both directions, and slopes of 1 and 0.1; warm-up of the
KL's weight from 0 to 1 over 200 of 2,000 epochs; images binarised dynamically, batch 256, Adam at
1e-3, one sample. Batch normalisation stands in all layers but the output's: as in the authors'
code, in those that give the parameters of a latent, too. A unit is active if its KL is above 0.01
nats; -log p(x) is from 5,000 samples. Otherwise than published: 59,600 of the 60,000 training
images, binarised at every visit and not once an epoch; scales, not variances, are softplus; the
output starts at the data's mean; the ladder's guide comes down through the model's own networks,
where the code has a second set of them; normalised parameters of latents start at a spread of 0.5,
not 1, from which the row without warm-up does not come down in a few epochs (all units stay
active, at -log p(x) of 110 nats). At the scale cpu the run is cut down to a few epochs, of which
the warm-up takes a larger share, and some of the test images are judged: only the order of the
rows can be held against the tables.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from burda2016_iwae import data
from jsonargparse import auto_cli
from study import ScaleName, Study, chosen, judge, spread
from torch import Tensor, nn

from pyro_vae import datasets, evaluation, fit
from pyro_vae.components import MLP, Conditional, DiagonalNormal, assemble_hierarchy
from pyro_vae.components.conditional import Network, Shape
from pyro_vae.engine import Binarize
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import ELBO, Constant, KLWeight, Linear, Scheduled
from pyro_vae.models import HierarchicalVAE, LadderVAE

LATENTS = (64, 32, 16, 8, 4)
WIDTHS = (512, 256, 128, 64, 32)
_ACTIVE_NATS = 0.01
_FIRST_SPREAD = 0.5


class Row(NamedTuple):
    """A row of the table: what is done, and what was published for it."""

    batch_norm: bool
    warm_up: bool
    ladder: bool
    published_active_units: tuple[int, ...]  # of each layer, from the data up
    published_nll_nats: float | None = None

    @property
    def published(self) -> dict[str, float]:
        """What was published, by the names of what is measured."""
        layers = enumerate(self.published_active_units, start=1)
        nll = self.published_nll_nats
        return {
            **({} if nll is None else {"nll_nats": nll}),
            "active_units": sum(self.published_active_units),
            **{f"active_units_z{layer}": num for layer, num in layers},
        }


TABLE = {
    "VAE": Row(False, False, False, (20, 1, 0, 0, 0)),
    "VAE, batch norm": Row(True, False, False, (20, 9, 3, 3, 2)),
    "VAE, batch norm, warm-up": Row(True, True, False, (34, 18, 6, 2, 1), 82.14),
    "ladder, batch norm, warm-up": Row(True, True, True, (46, 22, 8, 3, 2), 81.87),
}

ORDER = [
    ("VAE, batch norm, warm-up", "VAE"),
    ("ladder, batch norm, warm-up", "VAE, batch norm, warm-up"),
]


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    epochs: int
    warm_up_epochs: int
    num_train: int
    num_test: int
    num_samples: int
    left_out: tuple[str, ...] = ()


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 1, 300, 10, 5, tuple(TABLE)[:-1]),
    "cpu": Scale(24, 12, 59_600, 500, 500),
    "paper": Scale(2_000, 200, 59_600, 10_000, 5_000),
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "active_units": "active units",
    **{f"active_units_z{layer}": f"of layer {layer}" for layer in range(1, 6)},
    "training_seconds": "training, s",
}


class OutputNormalised(nn.Module):
    """A network whose output, the parameters of a latent, is normalised like its layers."""

    def __init__(self, in_shape: Shape, out_shape: Shape, *, network: Network) -> None:
        super().__init__()
        self.network = network(in_shape, out_shape)
        self.norm = nn.BatchNorm1d(math.prod(out_shape))
        nn.init.constant_(self.norm.weight, _FIRST_SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        raw: Tensor = self.network(x)
        return self.norm(raw.reshape(-1, self.norm.num_features)).reshape(raw.shape)


def program(row: Row, x: Tensor) -> HierarchicalVAE | LadderVAE:
    """Return the paper's network of a row, whose output starts at the mean of ``x``."""
    leaky = partial(nn.LeakyReLU, 0.1)
    normalise = nn.BatchNorm1d if row.batch_norm else None
    networks: list[Network] = [
        partial(MLP, hidden=(width, width), activation=leaky, normalise=normalise)
        for width in WIDTHS
    ]
    linear: Network = partial(MLP, hidden=())
    decoder = networks[0]
    if row.batch_norm:
        networks = [partial(OutputNormalised, network=network) for network in networks]
        linear = partial(OutputNormalised, network=linear)
    shapes = [(size,) for size in LATENTS]
    parts = assemble_hierarchy(tuple(x.shape[1:]), shapes, network=networks, decoder=decoder)
    parts["likelihood"].start_at(x.mean(0))
    if not row.ladder:
        return HierarchicalVAE(**parts)
    below = [tuple(x.shape[1:]), *((width,) for width in WIDTHS)]
    upward = [
        nn.Sequential(
            MLP(shape, (width,), hidden=(width,), activation=leaky, normalise=normalise),
            nn.BatchNorm1d(width) if row.batch_norm else nn.Identity(),
            leaky(),
        )
        for shape, width in zip(below, WIDTHS, strict=False)
    ]
    posteriors = [
        Conditional(DiagonalNormal(shape), context_shape=(width,), network=linear)
        for shape, width in zip(shapes, WIDTHS, strict=True)
    ]
    return LadderVAE(**{**parts, "upward": upward, "posteriors": posteriors})


def with_kl(units: evaluation.UnitActivity) -> int:
    """Return how many units of a layer have a KL above 0.01 nats."""
    assert units.kl_nats is not None, "normals are independent over units"
    return int((units.kl_nats > _ACTIVE_NATS).sum())


def run(row: Row, mnist: datasets.Dataset, x: Tensor, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table, on the test data ``x``."""
    scale = study.scale
    vae = program(row, mnist.train.x / 255)
    model, guide = vae.model, vae.guide
    if row.warm_up:
        warm = KLWeight(Scheduled(Linear(0.0, 1.0, until=scale.warm_up_epochs / scale.epochs)))
        model, guide = warm(model), warm(guide)
    done = fit(
        model,
        guide,
        mnist,
        objective=ELBO(),
        optim=partial(adam, lr=1e-3),
        schedule=Constant(),
        observation=Binarize(255),
        weights="last",
        epochs=scale.epochs,
        batch_size=256,
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    judged = judge(vae, x, num_samples=scale.num_samples, count=with_kl)
    return {**judged, "training_seconds": done.seconds}


def in_order(rows: dict[str, dict[str, Any]]) -> bool:
    """Whether rows, in the order of the table, have more and more active units in all."""
    found = [rows[title]["active_units"] for title in TABLE if title in rows]
    return found == sorted(found) and len(set(found)) == len(found)


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
        x = spread(seen, study.scale.num_test)
        for title, row in table.items():
            study.measure(title, partial(run, row, mnist, x, study), published=row.published)
        study.order(ORDER)
        study.note(active_units_are_in_the_published_order=in_order(study.rows))
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
