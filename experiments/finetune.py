"""What is an encoder worth where few data are labelled? Three classifiers of MNIST.

    python experiments/finetune.py --scale smoke|cpu|paper --data_root FOLDER

A VAE is trained without labels. Then few training images of each class get their labels, and three
classifiers have the same: the encoder, trained jointly with a linear layer that starts at the
probe; a linear probe on the frozen encoder's means, by logistic regression; and the same network
from new weights. Test errors are means over draws of the labelled images. Expected is their order,
with ten labels a class: fine-tuned below the probe, and that below the network from scratch. Beside
the probe stands what Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed
& Welling, 2014), table 1, has for 100 labels and a transductive SVM on the latents of a VAE,
M1+TSVM, 11.82 %: another classifier, which sees the test images, and a VAE of more of them.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from study import ScaleName, Study
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP
from pyro_vae.engine import Binarize
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.laboratory import finetune

# Of 100 labels.
PUBLISHED = {"linear probe": 11.82}
_NAMES = {"finetuned": "fine-tuned", "probe": "linear probe", "scratch": "from scratch"}


class Scale(NamedTuple):
    """How much is trained, and how often the labelled images are drawn."""

    num_train: int
    num_test: int
    epochs: int
    labels_per_class: tuple[int, ...]
    num_repeats: int
    classifier_epochs: int
    hidden: tuple[int, ...] = (256, 256)
    num_latents: int = 50


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(200, 30, 1, (2,), 2, 1, (16,), 4),
    "cpu": Scale(20_000, 10_000, 20, (10, 30), 5, 100),
    "paper": Scale(50_000, 10_000, 200, (10, 30, 100), 10, 200, (600, 600)),
}

COLUMNS = {"test_error_percent": "test error, %"}


def program(x: Tensor, scale: Scale, seed: int = 0) -> Any:
    """Return the VAE before training; ``x`` are the data."""
    torch.manual_seed(seed)
    network = partial(MLP, hidden=scale.hidden)
    return VAE.assemble((1, 28, 28), (scale.num_latents,), network=network, data=x)


def parts(data_root: Path, scale: Scale) -> tuple[datasets.Dataset, datasets.Data, datasets.Data]:
    """Return the images, and those of training and test with labels, as bits drawn once."""
    mnist = datasets.load("mnist", root=data_root)
    train, test = mnist.train[: scale.num_train], mnist.test[: scale.num_test]
    validation = mnist.validation[: scale.num_test]
    data = datasets.Dataset("mnist", train, validation, test, mnist.levels, mnist.classes)
    seen = (
        observe_once(part, Binarize(255), seed=OBSERVATION_SEED + place, device="cpu")
        for place, part in enumerate((train, test))
    )
    return data, *seen


def errors(found: Any) -> dict[str, dict[str, float]]:
    """Return the test error of each classifier in percent, with its standard error."""
    rows = {}
    for name, title in _NAMES.items():
        accuracy: evaluation.Estimate = getattr(found, name)
        rows[title] = {
            "test_error_percent": 100 * (1 - accuracy.value),
            "test_error_percent_standard_error": 100 * accuracy.standard_error,
        }
    return rows


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train, label and compare; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        size = study.scale
        data, train, test = parts(data_root, size)
        vae = program(train.x[:10_000], size, seed)
        done = fit(
            vae, data, observation=Binarize(255), epochs=size.epochs, batch_size=100, seed=seed,
            device="cpu", progress=sys.stderr.isatty(),
        )  # fmt: skip
        study.note(validation_elbo_nats=done.history[-1]["validation_elbo_nats"])
        for count in size.labels_per_class:
            found = finetune(
                vae, train, test, fresh=partial(program, train.x[:10_000], size),
                labels_per_class=count, num_repeats=size.num_repeats,
                epochs=size.classifier_epochs, seed=seed,
            )  # fmt: skip
            for title, row in errors(found).items():
                published = PUBLISHED.get(title) if count == 10 else None
                beside = None if published is None else {"test_error_percent": published}
                study.keep(f"{count} labels a class: {title}", row, published=beside)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
