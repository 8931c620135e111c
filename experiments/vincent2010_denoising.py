"""Does noise on what the encoder sees make codes that withstand it? Digits, plain and denoising.

    python experiments/vincent2010_denoising.py --scale smoke|cpu|paper --data_root FOLDER

Held against Stacked Denoising Autoencoders (Vincent, Larochelle, Lajoie, Bengio & Manzagol, 2010),
whose denoising autoencoders learn strokes where plain ones learn nothing to be seen, and against
Denoising Criterion for Variational Auto-Encoding Framework (Im, Ahn, Memisevic & Bengio, 2017). The
claims are an order: under noise the denoising model gives the clean image back better than the
plain one. No number of their tables is held against here.

Binarised MNIST; one hidden layer of ReLUs on each side, Adam at 1e-3 with half a cosine wave, batch
100, the weights of the last epoch. A quarter of the pixels that the encoder sees in training is
set to 0 or 1, each as likely (salt and pepper). The error is the squared difference between
the clean image and the mean that is decoded from the mean code, summed over the 784 pixels: of
clean test images, and of the same with salt and pepper under a seed of its own. -log p(x) of the
VAEs is by importance sampling on clean images.

A walk starts at noise, and is corrupted, encoded, decoded and drawn again and again (Generalized
Denoising Auto-Encoders as Generative Models, Bengio, Yao, Alain & Vincent, 2013). Where it ends is
judged by the number of pixels in which the last mean, rounded, differs from the nearest training
image; beside it stands the same of test images.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import static_mnist
import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, spread
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP, SaltAndPepperNoise
from pyro_vae.engine import fast_arithmetic
from pyro_vae.inference import ELBO, Corrupted, Objective, Reconstruction
from pyro_vae.models import Autoencoder
from pyro_vae.report import plots

PART = 0.25


class Row(NamedTuple):
    """A model, what it is trained by, and whether its encoder sees noise."""

    model: Any
    objective: Callable[[], Objective]
    is_denoising: bool


TABLE = {
    "autoencoder": Row(Autoencoder, Reconstruction, False),
    "denoising autoencoder": Row(Autoencoder, Reconstruction, True),
    "VAE": Row(VAE, ELBO, False),
    "denoising VAE": Row(VAE, ELBO, True),
}
PAIRS = (("denoising autoencoder", "autoencoder"), ("denoising VAE", "VAE"))


class Scale(NamedTuple):
    """How much is trained, judged and walked."""

    epochs: int
    num_train: int
    num_test: int
    num_samples: int
    num_hidden: int
    num_latents: int
    num_walks: int
    num_walk_steps: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 200, 20, 5, 16, 4, 3, 3),
    "cpu": Scale(15, 10_000, 1_000, 200, 300, 32, 100, 50),
    "paper": Scale(100, 50_000, 10_000, 5_000, 1_000, 100, 1_000, 500),
}

COLUMNS = {
    "noisy_squared_error": "squared error under noise",
    "clean_squared_error": "squared error, clean",
    "nll_nats": "-log p(x), nats",
    "walk_distance_pixels": "end of a walk to the nearest, pixels",
}


def train(row: Row, bits: datasets.Dataset, study: Study[Scale]) -> Any:
    """Return the trained model of a row."""
    scale = study.scale
    network = partial(MLP, hidden=(scale.num_hidden,), activation=nn.ReLU)
    program = row.model.assemble(
        (1, 28, 28), (scale.num_latents,), network=network, data=bits.train.x[:2_000].float()
    )
    around = Corrupted(SaltAndPepperNoise(PART)) if row.is_denoising else _as_it_is
    with fast_arithmetic():
        fit(
            program.model, around(program.guide), bits, objective=row.objective(),
            epochs=scale.epochs, batch_size=100, weights="last", seed=study.seed,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
    return program


def _as_it_is(guide: Any) -> Any:
    return guide


def noisy(x: Tensor, seed: int = 7) -> Tensor:
    """Return bits of which a part is set to 0 or 1, under a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SaltAndPepperNoise(PART)(x)  # until it meets data, the ends are 0 and 1


def errors(program: Any, x: Tensor, seen: Tensor) -> Tensor:
    """Return the squared error of each clean image from what the encoder sees, ``[N]``."""
    return (evaluation.reconstruct(program, seen) - x).square().flatten(1).sum(1)


def judge(program: Any, x: Tensor, bits: datasets.Dataset, study: Study[Scale]) -> dict[str, Any]:
    """Return the errors, log p(x) where there is a bound, and where walks end."""
    found: dict[str, Any] = {}
    of_images = {}
    for name, seen in (("noisy_squared_error", noisy(x)), ("clean_squared_error", x)):
        of_images[name] = errors(program, x, seen)
        found |= _mean_of(name, of_images[name])
    if isinstance(program, VAE):
        log_p = evaluation.log_likelihood(program, x, num_samples=study.scale.num_samples)
        found |= _mean_of("nll_nats", -log_p)
    ends = walk(program, study.scale)[-1]
    found |= _mean_of("walk_distance_pixels", nearest(ends, bits.train.x))
    return found | {"of_images": of_images}


def _mean_of(name: str, values: Tensor) -> dict[str, float]:
    error = values.std() / math.sqrt(len(values))
    return {name: float(values.mean()), f"{name}_standard_error": float(error)}


def walk(program: Any, scale: Scale) -> list[Tensor]:
    """Return the images after each step from noise, ``[num_walks, 1, 28, 28]`` each."""
    torch.manual_seed(11)
    x = torch.bernoulli(torch.full((scale.num_walks, 1, 28, 28), 0.5))
    steps = [x]
    for step in range(scale.num_walk_steps):
        means = evaluation.reconstruct(program, noisy(x, seed=step))
        x = torch.bernoulli(means)
        steps.append(x)
    return [*steps, means.round()]


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """Return in how many pixels each image differs from the nearest of others, ``[N]``."""
    one, two = x.flatten(1), others.flatten(1).float()
    return torch.cdist(one, two).square().amin(1)


def draw(programs: dict[str, Any], x: Tensor, study: Study[Scale], path: Path) -> None:
    """Draw images under noise and what each model makes of them, filters, and walks."""
    few, scale = spread(x, 12), study.scale
    rows = [few, noisy(few), *(evaluation.reconstruct(p, noisy(few)) for p in programs.values())]
    labels = ["clean", "seen", *programs]
    _save(torch.stack(rows), labels, "Digits under salt and pepper", path, "digits")
    filters = [filters_of(programs[name]) for name in programs]
    _save(torch.stack(filters), list(programs), "Filters that count most", path, "filters")
    some = sorted({*(s for s in (0, 1, 2, 5, 10, 20, 50) if s <= scale.num_walk_steps)})
    walked = [walk(program, scale) for program in programs.values()]
    walks = [torch.stack([w[step][number] for step in some]) for w in walked for number in (0, 1)]
    names = [f"{name} {number}" for name in programs for number in (1, 2)]
    labels = [f"{step} steps" for step in some]
    _save(torch.stack(walks), names, "Walks from noise", path, "walks", labels)


def filters_of(program: Any) -> Tensor:
    """Return the encoder's filters that count most for the code as images in [0, 1]."""
    first, behind = (
        layer.weight.detach()
        for layer in program.posterior.modules()
        if isinstance(layer, nn.Linear)
    )
    chosen = first[behind.norm(dim=0).argsort(descending=True)[:12]]
    largest = chosen.abs().amax(1, keepdim=True)
    return (0.5 + 0.5 * chosen / largest).reshape(-1, 1, 28, 28)


def _save(
    images: Tensor, rows: list[str], title: str, path: Path, name: str, columns: Any = ()
) -> None:
    figure = plots.image_grid(
        images, title=title, row_labels=rows, column_labels=columns, limits=(0.0, 1.0)
    )
    plots.save(figure, path.with_name(f"{path.stem}_{name}.png"))


def main(data_root: Path, scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Train and judge all four; print the table, write the record, draw the figures."""
    torch.set_num_threads(1)
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        bits = static_mnist.load(data_root, study.scale.num_train)
        x = spread(bits.test.x, study.scale.num_test).float()  # in the file, digit by digit
        programs: dict[str, Any] = {}
        of_images: dict[str, dict[str, Tensor]] = {}

        def run(title: str, row: Row) -> dict[str, Any]:
            programs[title] = train(row, bits, study)
            found = judge(programs[title], x, bits, study)
            of_images[title] = found.pop("of_images")
            return found

        for title, row in TABLE.items():
            study.measure(title, partial(run, title, row))
        study.note(
            test_images=_mean_of("walk_distance_pixels", nearest(x, bits.train.x)),
            gains={
                f"{better} over {worse}, {key}": _mean_of(
                    "gain", of_images[worse][key] - of_images[better][key]
                )
                for better, worse in PAIRS
                for key in of_images[better]
            },
        )
        study.show(COLUMNS)
        draw(programs, x, study, study.path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
