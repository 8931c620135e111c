"""Are samples better once a prior is fitted to the codes? An autoencoder and a VAE on MNIST.

    python experiments/ghosh2020_ex_post.py --scale smoke|cpu|paper --data_root FOLDER

Held against From Variational to Deterministic Autoencoders (Ghosh, Sajjadi, Vergari, Black &
Schölkopf, 2020): after training, a density is fitted to the codes, a normal or a mixture of ten,
and samples of it decode to better images than those of the prior that training has had, of
deterministic autoencoders and of VAEs. The order alone is held against here: the published Fréchet
distances are in features of a network that was trained on other images and is not at hand.

An autoencoder of 16 latents and a VAE of the same networks, whose squared error is a normal
likelihood of one learned scale; then ``laboratory.refit`` with other priors, encoder and decoder as
they are. What is compared with the test images is the decoded mean of as many samples, by the
Fréchet distance of the last hidden layer of a small convolutional classifier, which was trained on
the labels of the training images. Its floor is that of as many training images; reconstructions are
beside it. Standard errors are over halves of both sets, drawn anew ten times; every distance of
that many images has the same bias.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from study import ScaleName, Study
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import (
    MLP,
    FullNormal,
    MixtureOfNormals,
    NeuralSpline,
    Normal,
    SharedScale,
)
from pyro_vae.engine import Rescale
from pyro_vae.engine.optimizers import adam
from pyro_vae.laboratory import Refit, refit
from pyro_vae.models import Autoencoder

PRIORS: dict[str, Callable[..., Any]] = {
    "a normal": FullNormal,
    "a mixture of 10": partial(MixtureOfNormals, num_components=10),
    "a neural spline": NeuralSpline,
}
_LATENTS, _SPLITS = 16, 10


class Scale(NamedTuple):
    """How much is trained, and how many images are compared."""

    num_train: int
    num_images: int
    epochs: int
    prior_epochs: int
    classifier_epochs: int
    hidden: tuple[int, ...] = (256, 256)


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(200, 30, 1, 1, 1, (16,)),
    "cpu": Scale(20_000, 5_000, 15, 10, 3),
    "paper": Scale(50_000, 10_000, 100, 100, 20),
}

COLUMNS = {
    "frechet_distance": "Fréchet distance",
    "gained_nats": "log p(z) gained, nats",
    "reconstruction_error": "squared error",
}


def images(data_root: Path, scale: Scale) -> datasets.Dataset:
    """Return MNIST with the first images of each part alone."""
    mnist, num = datasets.load("mnist", root=data_root), scale.num_images
    return datasets.Dataset(
        mnist.name, mnist.train[: scale.num_train], mnist.validation[:num], mnist.test[:num],
        mnist.levels, mnist.classes,
    )  # fmt: skip


# The features -------------------------------------------------------------------------------------


def classifier() -> tuple[nn.Sequential, nn.Module]:
    """Return a network from images in [0, 1] to 64 features, and a layer from these to classes."""
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(),
    )  # fmt: skip
    return features, nn.Linear(64, 10)


def trained_features(data: datasets.Dataset, epochs: int) -> tuple[nn.Module, float]:
    """Return the features of a classifier of the training images, and its test accuracy."""
    features, head = classifier()
    x, labels = pixels(data.train.x), data.train.labels
    optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            loss = nn.functional.cross_entropy(head(features(x[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = head(features(pixels(data.test.x))).argmax(1)
    return features, (found == data.test.labels).double().mean().item()


def pixels(x: Tensor) -> Tensor:
    """Return stored images in [0, 1]."""
    return x.float() / 255


@torch.no_grad()
def described(features: nn.Module, x: Tensor) -> Tensor:
    """Return the features of images, ``[N, 64]``; what is outside of [0, 1] is cut."""
    x = x.reshape(-1, 1, 28, 28).clamp(0, 1)
    return torch.cat([features(rows) for rows in x.split(1000)]).double()


def frechet_distance(ours: Tensor, theirs: Tensor) -> float:
    r"""Return :math:`|m - m'|^2 + \mathrm{tr}(C + C' - 2 (C C')^{1/2})` of features ``[N, D]``."""
    apart = (ours.mean(0) - theirs.mean(0)).square().sum()
    one, other = torch.cov(ours.T), torch.cov(theirs.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return float(apart + one.trace() + other.trace() - 2 * both)


def compared(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Return the distance of features, with its standard error from halves drawn anew."""
    halves = [
        frechet_distance(
            *(each[torch.randperm(len(each))[: len(each) // 2]] for each in (ours, theirs))
        )
        for _ in range(_SPLITS)
    ]
    # Of half as many images the spread is larger by the root of two.
    error = torch.tensor(halves).std().item() / math.sqrt(2)
    return {
        "frechet_distance": frechet_distance(ours, theirs),
        "frechet_distance_standard_error": error,
    }


# The models ---------------------------------------------------------------------------------------


def program(kind: Any, hidden: tuple[int, ...], x: Tensor) -> Any:
    """Return an autoencoder or a VAE with a squared error whose scale is learned."""
    return kind.assemble(
        (1, 28, 28), (_LATENTS,), likelihood=partial(Normal, scale=SharedScale),
        network=partial(MLP, hidden=hidden), data=x,
    )  # fmt: skip


def trained(kind: Any, data: datasets.Dataset, scale: Scale, seed: int) -> Any:
    """Return a program trained on the images."""
    made = program(kind, scale.hidden, pixels(data.train.x[:10_000]))
    fit(
        made, data, observation=Rescale(255), epochs=scale.epochs, batch_size=100, seed=seed,
        device="cpu", progress=sys.stderr.isatty(),
    )  # fmt: skip
    return made


def refitted(made: Any, prior: Any, data: datasets.Dataset, scale: Scale, seed: int) -> Refit:
    """Return the program with another prior."""
    return refit(
        made, data, prior=prior, observation=Rescale(255), epochs=scale.prior_epochs,
        batch_size=100, optim=partial(adam, lr=3e-3), seed=seed, device="cpu",
        progress=sys.stderr.isatty(),
    )  # fmt: skip


def sampled(made: Any, x: Tensor, num: int) -> Tensor:
    """Return the decoded means of samples from the prior."""
    found: Any = evaluation.prior_samples(made.model, x, num, stochastic=False)
    return found


def reconstructed(made: Any, x: Tensor) -> Tensor:
    """Return the decoded means of the codes of images."""
    found: Any = evaluation.reconstruct(made, x)
    return found


class Judged:
    """What images are compared with: the features of test images.

    Args:
        data: The images.
        scale: How much is compared.
    """

    def __init__(self, data: datasets.Dataset, scale: Scale) -> None:
        self.data, self.scale = data, scale
        self.x = pixels(data.test.x)
        self.features, self.accuracy = trained_features(data, scale.classifier_epochs)
        self.theirs = described(self.features, self.x)

    def floor(self) -> dict[str, float]:
        """Return the distance of as many training images."""
        train = pixels(self.data.train.x[: len(self.x)])
        return compared(described(self.features, train), self.theirs)

    def samples(self, made: Any) -> dict[str, float]:
        """Return the distance of as many samples of a program's prior."""
        drawn = sampled(made, self.x, len(self.x))
        return compared(described(self.features, drawn), self.theirs)

    def reconstructions(self, made: Any) -> dict[str, float]:
        """Return the distance of reconstructions, and their squared error for each pixel."""
        found = reconstructed(made, self.x)
        error = (found.reshape(self.x.shape) - self.x).square().mean().item()
        return {**compared(described(self.features, found), self.theirs),
                "reconstruction_error": error}  # fmt: skip

    def refits(self, study: Study[Scale], name: str, made: Any) -> None:
        """Measure a program's samples under other priors."""

        def row(prior: Any) -> dict[str, float]:
            done = refitted(made, prior, self.data, self.scale, study.seed)
            gained = done.gained_nats
            return {
                **self.samples(done.program),
                "gained_nats": gained.value,
                "gained_nats_standard_error": gained.standard_error,
            }

        for title, prior in PRIORS.items():
            study.measure(f"{name}: {title} fitted", partial(row, prior))


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train, fit priors and compare samples; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        data = images(data_root, study.scale)
        judged = Judged(data, study.scale)
        study.note(classifier_accuracy=judged.accuracy)
        study.measure("training images", judged.floor)
        for title, kind in {"autoencoder": Autoencoder, "VAE": VAE}.items():
            torch.manual_seed(study.seed)
            made = trained(kind, data, study.scale, study.seed)
            study.measure(f"{title}: reconstructions", partial(judged.reconstructions, made))
            study.measure(f"{title}: N(0, I)", partial(judged.samples, made))
            judged.refits(study, title, made)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
