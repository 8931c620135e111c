"""What do discrete codes cost, and what does a prior over them give? VQ-VAE and FSQ beside a VAE.

    python experiments/oord2017_vqvae.py --scale smoke|cpu|paper --data_root FOLDER

Held against Neural Discrete Representation Learning (van den Oord et al., 2017), whose bounds on
CIFAR-10 are 4.51 bits per dimension for a VAE, 4.67 for a VQ-VAE with its uniform prior and 5.14
for VIMCO with as many bits; and against the authors' example, in which the mean squared error of
the reconstruction is 0.056 of the variance of the data, and the perplexity of 512 codes 326, after
10,000 steps. The order of the paper is that of the rows; Finite Scalar Quantization (Mentzer et
al., 2024) has it that FSQ uses more of its codes.

All rows have one network, one schedule and an 8x8 grid of latents; the VAE has as many continuous
numbers as the codes have. The likelihood is a discretised logistic, so that bits are of the stored
levels. The second prior is trained with encoder and decoder fixed, and its gain is in the same
bound.

Otherwise than published: a tenth of a part of CIFAR-10 is what lies at hand (10,000 images), fewer
channels, a vector of a code has 16 numbers, and the run at the scale cpu is a few epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import auto_cli
from study import ScaleName, Study, chosen
from topdown import cifar10
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import (
    AutoregressiveCodes,
    DiscretizedLogistic,
    FiniteScalar,
    FullyConvolutional,
    NearestCode,
)
from pyro_vae.engine import AsFloat, fast_arithmetic
from pyro_vae.engine.optimizers import adam
from pyro_vae.laboratory import refit
from pyro_vae.models import VQVAE

_LEVELS = 255


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    epochs: int
    batch_size: int
    channels: int
    num_train: int
    num_test: int
    num_codes: int
    num_channels: int = 16
    prior_epochs: int = 10
    prior_width: int = 64


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 16, 4, 64, 10, 8, 2, 1, 8),
    "cpu": Scale(10, 32, 32, 9_000, 500, 512),
    "paper": Scale(900, 128, 256, 50_000, 10_000, 512, 64, 100, 256),
}

Build = Callable[[Tensor, Scale], Any]


def _parts(x: Tensor, scale: Scale) -> dict[str, Any]:
    return {
        "likelihood": partial(DiscretizedLogistic, levels=_LEVELS),
        "network": partial(FullyConvolutional, channels=scale.channels), "data": x,
    }  # fmt: skip


def vae(x: Tensor, scale: Scale) -> VAE:
    """Return a VAE with an 8x8 grid of normal latents."""
    return VAE.assemble((3, 32, 32), (scale.num_channels, 8, 8), **_parts(x, scale))


def quantized(x: Tensor, scale: Scale) -> VQVAE:
    """Return a VQ-VAE whose codebook follows the encoder."""
    codes = partial(NearestCode, num_codes=scale.num_codes)
    shape = (scale.num_channels, 8, 8)
    return VQVAE.assemble((3, 32, 32), shape, posterior=codes, **_parts(x, scale))


def rounded(x: Tensor, scale: Scale) -> VQVAE:
    """Return one of three rounded numbers a place, 8x8x8 codes where the codebook has 512."""
    side = round(scale.num_codes ** (1 / 3))
    codes = partial(FiniteScalar, levels=side)
    return VQVAE.assemble((3, 32, 32), (3, 8, 8), posterior=codes, **_parts(x, scale))


class Row(NamedTuple):
    """A row of the table: how it is built, and the bits per dimension published for it."""

    build: Build
    published_bits_per_dim: float | None = None


TABLE = {"VAE": Row(vae, 4.51), "VQ-VAE": Row(quantized, 4.67), "FSQ": Row(rounded)}
COLUMNS = {
    "bits_per_dim": "bits per dimension (bound)",
    "nmse": "squared error / variance",
    "perplexity": "perplexity of codes",
    "codes_used": "codes used",
    "prior_gain_nats": "gained by a second prior, nats",
    "bits_per_dim_with_prior": "bits per dimension with it",
    "training_seconds": "training, s",
}


def run(row: Row, images: datasets.Dataset, study: Study[Scale]) -> dict[str, Any]:
    """Train and evaluate a row of the table."""
    scale = study.scale
    x = images.test.x[: scale.num_test].float()
    program = row.build(images.train.x[:2_000].float(), scale)
    options: dict[str, Any] = {
        "observation": AsFloat(_LEVELS), "batch_size": scale.batch_size, "seed": study.seed,
        "progress": False,
    }  # fmt: skip
    with fast_arithmetic():
        done = fit(program, images, epochs=scale.epochs, optim=partial(adam, lr=1e-3), **options)
        found = {**_evaluated(program, x), "training_seconds": done.seconds}
        if isinstance(program, VQVAE):
            found |= _with_prior(program, images, x, scale, options)
    return found


def _evaluated(program: Any, x: Tensor) -> dict[str, Any]:
    bound = evaluation.elbo(program, x)
    error = evaluation.reconstruction_error(program, x).squared_error
    assert error is not None
    found = {
        "bits_per_dim": bound.bits_per_dim,
        "elbo_nats": bound.elbo_nats.value,
        "elbo_nats_standard_error": bound.elbo_nats.standard_error,
        "nmse": error.value / x.var().item(),
    }
    if isinstance(program, VQVAE):
        usage = evaluation.code_usage(program, x)["z"]
        found |= {"perplexity": usage.perplexity, "codes_used": usage.num_used,
                  "num_codes": usage.num_codes}  # fmt: skip
    return found


def _with_prior(
    program: Any, images: datasets.Dataset, x: Tensor, scale: Scale, options: dict[str, Any]
) -> dict[str, Any]:
    prior = partial(AutoregressiveCodes, width=scale.prior_width)
    refitted = refit(program, images, prior=prior, epochs=scale.prior_epochs, **options)
    bound = evaluation.elbo(refitted.program, x)
    return {
        "prior_gain_nats": refitted.gained_nats.value,
        "prior_gain_nats_standard_error": refitted.gained_nats.standard_error,
        "bits_per_dim_with_prior": bound.bits_per_dim,
        "prior_seconds": refitted.fit.seconds,
    }


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and evaluate every row; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        images = cifar10(data_root, study.scale.num_train)
        for title, row in chosen(TABLE, rows).items():
            bits = row.published_bits_per_dim
            published = {} if bits is None else {"bits_per_dim": bits}
            study.measure(title, partial(run, row, images, study), published=published)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
