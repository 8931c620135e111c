"""What do a hundred labels give beside many images without one? M1, M2 and both on MNIST.

    python experiments/kingma2014_semi_supervised.py --scale smoke|cpu|paper --data_root FOLDER

Held against Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed &
Welling, 2014), table 1, 100 labels: the test error of a classifier of the latents of a VAE (M1), of
a VAE whose class is a latent where it is not given (M2), and of M2 on the latents of M1. A
classifier of the labelled images alone is beside them; the paper's is a TSVM for M1, here it is a
logistic regression of the labelled data alone.

As published: images in [0, 1] as probabilities of bits, drawn anew for every step; M1 has two
layers of 600 units and 50 latents, M2 one layer of 500 and 50 latents; labels are as many of each
class; the class is summed over where it is not given. Otherwise than published, at every scale:
Adam at 1e-3 with a rate that falls as half a cosine wave, where the paper has RMSProp at 3e-4 for
3,000 epochs; units are silu, not softplus; a fifth of each batch is labelled and log q(y | x) of a
labelled image counts 50, where the paper's labels come as they are among the images and the weight
is 0.1 N / M for M labels among N images, 50 as well; no prior of the weights; q(z | x, y) sees y
behind 128 features of x; M1 + M2 takes the mean of the latents of M1 for its data, scored by a
normal of learned scale. At the scale cpu there are fewer images and hundreds of times fewer steps,
so that only the order of the rows compares with the paper.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from study import ScaleName, Study
from torch import Tensor, nn

from pyro_vae import VAE, datasets, fit
from pyro_vae.components import MLP, Normal, PerDimensionScale
from pyro_vae.engine import Binarize
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import AnalyticELBO
from pyro_vae.models import M2

_LATENTS, _NUM_CLASSES = (50,), 10
_ALPHA, _LABELLED_SHARE = 50.0, 0.2
PUBLISHED = {
    "M1": {"error_percent": 11.82},
    "M2": {"error_percent": 11.97},
    "M1 + M2": {"error_percent": 3.33},
}


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    num_train: int
    num_labels: int
    num_test: int
    epochs_of_m1: int
    epochs_of_m2: int
    epochs_of_both: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(100, 20, 20, 1, 1, 1),
    "cpu": Scale(10_000, 100, 10_000, 12, 4, 10),
    "paper": Scale(50_000, 100, 10_000, 3_000, 3_000, 3_000),
}

COLUMNS = {
    "error_percent": "test error, %",
    "error_standard_error": "+-",
    "training_seconds": "training, s",
}


def few_labels(labels: Tensor, num: int, seed: int) -> Tensor:
    """Return labels of which so many stay, as many of each class; the others are -1."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = torch.full_like(labels, -1)
    for each in range(_NUM_CLASSES):
        rows = order[labels[order] == each][: num // _NUM_CLASSES]
        kept[rows] = each
    return kept


def parts(root: Path, scale: Scale, seed: int) -> datasets.Dataset:
    """Return MNIST with few labels: validation is without any, the test has all."""
    whole = datasets.load("mnist", root=root)
    train = whole.train[: scale.num_train]
    train = train.replace(labels=few_labels(train.labels, scale.num_labels, seed))
    validation = whole.validation[:1_000]
    validation = validation.replace(labels=torch.full_like(validation.labels, -1))
    test = whole.test[: scale.num_test]
    return datasets.Dataset(
        "mnist", *(flat(part) for part in (train, validation, test)), whole.levels, whole.classes
    )


def flat(part: datasets.Data) -> datasets.Data:
    return part.replace(x=part.x.flatten(1))


def trained(
    program: Any, data: datasets.Dataset, epochs: int, seed: int, **options: Any
) -> tuple[Any, float]:
    """Train a program, and return it in evaluation mode and the seconds that it took."""
    done = fit(
        program, data, objective=AnalyticELBO(), optim=partial(adam, lr=1e-3), epochs=epochs,
        batch_size=100, weights="last", seed=seed, progress=sys.stderr.isatty(), device="cpu",
        engine="recorded", **options,
    )  # fmt: skip
    return program.eval(), done.seconds


def error(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the test error in percent, and its standard error over the test data."""
    wrong = (predicted != labels).double()
    spread = wrong.std() / len(wrong) ** 0.5
    return {"error_percent": 100 * wrong.mean().item(), "error_standard_error": 100 * spread.item()}


def alone(data: datasets.Dataset, seed: int) -> dict[str, float]:
    """Train a network of the size of M2's classifier on the labelled images alone."""
    torch.manual_seed(seed)
    rows = data.train.labels >= 0
    x, y = data.train.x[rows].float() / 255, data.train.labels[rows]
    network = nn.Sequential(nn.Linear(784, 500), nn.SiLU(), nn.Linear(500, _NUM_CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return error(network(data.test.x.float() / 255).argmax(-1), data.test.labels)


def first(data: datasets.Dataset, scale: Scale, seed: int) -> tuple[VAE, float]:
    """Train M1 on all images, without a label."""
    network = partial(MLP, hidden=(600, 600))
    torch.manual_seed(seed)
    vae = VAE.assemble((784,), _LATENTS, network=network)
    return trained(vae, data, scale.epochs_of_m1, seed, observation=Binarize(255))


def codes(vae: VAE, data: datasets.Dataset) -> datasets.Dataset:
    """Return the means of the latents of M1 in the place of the images."""

    def coded(part: datasets.Data) -> datasets.Data:
        with torch.no_grad():  # of the grey images, not of bits that are drawn from them
            return part.replace(x=vae.posterior(part.x.float() / 255).mean)

    return datasets.Dataset(
        "codes", *map(coded, data.parts.values()), levels=None, classes=data.classes
    )


def probed(data: datasets.Dataset) -> dict[str, float]:
    """Classify latents by a logistic regression of the labelled ones."""
    from sklearn.linear_model import LogisticRegression

    rows = data.train.labels >= 0
    model = LogisticRegression(max_iter=2_000)
    model.fit(data.train.x[rows].numpy(), data.train.labels[rows].numpy())
    return error(torch.from_numpy(model.predict(data.test.x.numpy())), data.test.labels)


def second(data: datasets.Dataset, epochs: int, seed: int, **options: Any) -> dict[str, float]:
    """Train M2 on images or latents, and classify the test data with its q(y | x)."""
    likelihood = options.pop("likelihood", None)
    torch.manual_seed(seed)
    program = M2.assemble(
        data.event_shape, _LATENTS, num_classes=_NUM_CLASSES,
        alpha=_ALPHA,
        network=partial(MLP, hidden=(500,)),
        **({} if likelihood is None else {"likelihood": likelihood}),
    )  # fmt: skip
    program, seconds = trained(
        program, data, epochs, seed, labelled_share=_LABELLED_SHARE, **options
    )
    x = data.test.x.float() if likelihood is not None else data.test.x.float() / 255
    with torch.no_grad():
        found = program.classifier(x).logits.argmax(-1)
    return {**error(found, data.test.labels), "training_seconds": seconds}


def main(data_root: Path, scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Train and judge every row; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        run = study.scale
        data = parts(data_root, run, seed)
        study.measure("classifier alone", partial(alone, data, seed))
        vae, seconds = first(data, run, seed)
        latents = codes(vae, data)
        study.measure(
            "M1", lambda: {**probed(latents), "training_seconds": seconds},
            published=PUBLISHED["M1"],
        )  # fmt: skip
        study.measure(
            "M2", partial(second, data, run.epochs_of_m2, seed, observation=Binarize(255)),
            published=PUBLISHED["M2"],
        )  # fmt: skip
        both = partial(
            second, latents, run.epochs_of_both, seed,
            likelihood=partial(Normal, scale=PerDimensionScale),
        )  # fmt: skip
        study.measure("M1 + M2", both, published=PUBLISHED["M1 + M2"])
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
