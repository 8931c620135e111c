"""How sparse do codes become as sparsity is asked for? Three ways, on MNIST.

    python experiments/sparse_autoencoder.py --scale smoke|cpu|paper --data_root FOLDER

No paper's number is held against: what is claimed is that the number of codes that are on for a
datum falls as the weight of an L1 cost rises (Olshausen & Field, 1996), as the rate falls to which
units are drawn (Ng, 2011), and, by construction, with the K that are kept (Makhzani & Frey, 2014),
each at a price in reconstruction. The decoder is linear with columns of norm 1, which are drawn:
the features of which a digit is made. A unit of the second kind counts what it is, between 0 and 1.

Pixels are the stored levels scaled to [0, 1], under a normal likelihood of scale 0.3; all rows have
one encoder and one schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import auto_cli
from study import ScaleName, Study, chosen
from torch import Tensor

from pyro_vae import datasets, evaluation, fit
from pyro_vae.components import (
    MLP,
    Dictionary,
    Normal,
    Point,
    RatePoint,
    SparsePoint,
    TopKPoint,
)
from pyro_vae.engine import Rescale, fast_arithmetic
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.models import Autoencoder
from pyro_vae.report import plots


class Scale(NamedTuple):
    """How much is run."""

    epochs: int
    num_train: int
    num_test: int
    num_codes: int = 128
    hidden: tuple[int, ...] = (256,)


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 200, 20, 40, (8,)),
    "cpu": Scale(20, 10_000, 1_000),
    "paper": Scale(200, 60_000, 10_000),
}

TABLE: dict[str, Callable[..., Any]] = {
    "plain": Point,
    **{f"L1, weight {w:g}": partial(SparsePoint, weight=w) for w in (0.05, 0.2, 0.5, 1.0)},
    **{f"rate {r:g}": partial(RatePoint, rate=r, weight=50.0) for r in (0.2, 0.05, 0.0125)},
    **{f"{k} largest": partial(TopKPoint, num_active=k) for k in (32, 8, 2)},
}
COLUMNS = {
    "codes_on": "codes on, a datum",
    "squared_error": "squared error, a pixel",
    "reconstruction_nats": "log p(x given z), nats",
    "probe_accuracy": "linear probe, %",
}


def autoencoder(posterior: Callable[..., Any], scale: Scale) -> Autoencoder:
    """Return an autoencoder with a linear decoder."""
    return Autoencoder.assemble(
        (1, 28, 28), (scale.num_codes,), posterior=posterior, decoder=Dictionary,
        likelihood=partial(Normal, scale=0.3), encoder=partial(MLP, hidden=scale.hidden),
    )  # fmt: skip


def run(
    posterior: Callable[..., Any], title: str, images: datasets.Dataset, study: Study[Scale]
) -> dict[str, Any]:
    """Train and evaluate a row, and draw its features."""
    scale, observation = study.scale, Rescale(255)
    program = autoencoder(posterior, scale)
    with fast_arithmetic():
        fit(program, images, observation=observation, epochs=scale.epochs, seed=study.seed,
            progress=False)  # fmt: skip
    test = observe_once(
        images.test[: scale.num_test], observation, seed=OBSERVATION_SEED, device="cpu"
    )
    train = observe_once(
        images.train[: scale.num_test], observation, seed=OBSERVATION_SEED, device="cpu"
    )
    error = evaluation.reconstruction_error(program, test.x)
    codes = evaluation.posterior_means(program, test.x)["z"]
    seen = evaluation.posterior_means(program, train.x)["z"]
    on = codes if title.startswith("rate") else codes != 0
    assert error.squared_error is not None
    _draw(program, codes, study, title)
    return {
        "codes_on": on.float().sum(1).mean().item(),
        "squared_error": error.squared_error.value,
        "reconstruction_nats": error.reconstruction_nats.value,
        "reconstruction_nats_standard_error": error.reconstruction_nats.standard_error,
        "probe_accuracy": 100 * evaluation.linear_probe(seen, train.labels, codes, test.labels),
    }


def _draw(program: Autoencoder, codes: Tensor, study: Study[Scale], title: str) -> None:
    """Draw the 64 features that are used most, for the row of each kind that is sparse."""
    if title not in ("plain", "L1, weight 0.5", "rate 0.05", "8 largest"):
        return
    network: Any = program.likelihood.network
    used = codes.abs().mean(0).argsort(descending=True)[:64]
    columns = network.columns.detach().T[used].reshape(len(used), -1, 28, 28)[:, :1]
    low, high = columns.amin((1, 2, 3), True), columns.amax((1, 2, 3), True)
    figure = plots.image_grid((columns - low) / (high - low), title=title, columns=16)
    study.save(figure, title.replace(", ", "_").replace(" ", "_"))


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and evaluate every row; print the table, write the record, draw the features."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        whole = datasets.load("mnist", root=data_root)
        kept = (whole.train[: study.scale.num_train], whole.validation[:1_000], whole.test)
        images = datasets.Dataset("mnist", *kept, whole.levels, whole.classes)
        for title, posterior in chosen(TABLE, rows).items():
            study.measure(title, partial(run, posterior, title, images, study))
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
