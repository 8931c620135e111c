"""``torch.export`` takes encoders and decoders, with validation on."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pytest
import torch
from torch import nn

from pyro_vae import VAE
from pyro_vae.components import (
    MLP,
    Automatic,
    Bernoulli,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Convolutional,
    DiagonalNormal,
    FullNormal,
    LowRankNormal,
    MixtureOfNormals,
    Normal,
)

NETWORK = partial(MLP, hidden=(8,))
SHAPE = (1, 8, 8)
PARTS = {
    "normal": {"likelihood": Normal},
    "bits": {"likelihood": Bernoulli},
    "counts": {"likelihood": partial(Binomial, total_count=3)},
    "open counts": {"likelihood": partial(Automatic, distribution="Poisson")},
    "levels": {"likelihood": partial(Categorical, num_categories=3)},
    "between": {"likelihood": ContinuousBernoulli},
    "full": {"likelihood": Normal, "posterior": FullNormal},
    "low rank": {"likelihood": Normal, "posterior": LowRankNormal},
    "mixture": {"likelihood": Normal, "posterior": MixtureOfNormals},
    "convolutions": {"likelihood": Normal, "network": Convolutional},
    "discrete": {"likelihood": Normal, "prior": Bernoulli, "posterior": Bernoulli},
    "diagonal": {"likelihood": Normal, "prior": DiagonalNormal},
}

FAST = ("normal", "bits", "convolutions")


class Numbers(nn.Module):
    """A number of the distribution that a part returns."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, context):
        fn = self.part(context)
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        names = ("loc", "logits", "rate", "component_distribution")
        found = next(getattr(fn, name) for name in names if hasattr(fn, name))
        return found if isinstance(found, torch.Tensor) else found.base_dist.loc


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(parts, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, parts in PARTS.items()
    ],
)
def test_encoder_and_decoder_are_exported_with_validation_on(parts):
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    vae = VAE.assemble(SHAPE, (2,), **{"network": NETWORK, **parts}).eval()
    for part, context in (
        (vae.posterior, torch.randn(3, *SHAPE)),
        (vae.likelihood, torch.ones(3, 2)),
    ):
        module = Numbers(part).eval()
        with pyro.validation_enabled(True), torch.no_grad():
            exported = torch.export.export(module, (context,)).module()
            assert torch.equal(exported(context), module(context))
    logging.disable(logging.NOTSET)
