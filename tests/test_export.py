"""``torch.export`` takes encoders and decoders, and their densities, with validation on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import pyro
import pytest
import torch
from torch import nn

from pyro_vae import VAE
from pyro_vae.components import (
    MLP,
    AffineCoupling,
    Automatic,
    AutoregressiveBernoulli,
    Bernoulli,
    Binomial,
    Categorical,
    CategoricalSequence,
    ContinuousBernoulli,
    Convolutional,
    ConvolutionalResidual,
    DiagonalNormal,
    DiscretizedLogistic,
    FullNormal,
    Householder,
    Incomplete,
    InverseAutoregressive,
    LowRankNormal,
    MaskedAutoregressive,
    MixtureOfNormals,
    NeuralSpline,
    Normal,
    PixelCNN,
    Planar,
    Radial,
    Recurrent,
    RecurrentDecoder,
    Sylvester,
    Transformer,
    TransformerDecoder,
    UniformSphere,
    VonMisesFisher,
)

IMAGES = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
SYMBOLS = torch.randint(1, 5, (20, 6), generator=torch.Generator().manual_seed(0))
MLPS = {"network": partial(MLP, hidden=(8,))}
SENTENCES = {"likelihood": partial(CategoricalSequence, num_categories=5)}
PARTS = {
    "normal": (IMAGES, {}),
    "convolutions": (IMAGES, {"network": partial(Convolutional, channels=(4,), hidden=8)}),
    "a flow": (IMAGES, {"posterior": AffineCoupling}),
    "residual": (IMAGES, {"network": partial(ConvolutionalResidual, channels=(4,), hidden=8)}),
    "bits": (IMAGES.round(), {"likelihood": Bernoulli}),
    "counts": (IMAGES.round(), {"likelihood": partial(Binomial, total_count=3)}),
    "open counts": (IMAGES.round(), {"likelihood": partial(Automatic, distribution="Poisson")}),
    "levels": (IMAGES.round(), {"likelihood": partial(Categorical, num_categories=3)}),
    "logistic": (IMAGES.round(), {"likelihood": partial(DiscretizedLogistic, levels=3)}),
    "between": (IMAGES, {"likelihood": ContinuousBernoulli}),
    "gamma": (IMAGES, {"likelihood": partial(Automatic, distribution="Gamma")}),
    "beta": (IMAGES, {"likelihood": partial(Automatic, distribution="Beta")}),
    "missing": (IMAGES, {"likelihood": Incomplete}),
    "full": (IMAGES, {"posterior": FullNormal}),
    "low rank": (IMAGES, {"posterior": LowRankNormal}),
    "mixture": (IMAGES, {"posterior": MixtureOfNormals}),
    "discrete": (IMAGES, {"prior": Bernoulli, "posterior": Bernoulli}),
    "diagonal": (IMAGES, {"prior": DiagonalNormal}),
    "inverse autoregressive": (IMAGES, {"posterior": InverseAutoregressive}),
    "masked autoregressive": (IMAGES, {"posterior": MaskedAutoregressive}),
    "spline": (IMAGES, {"posterior": NeuralSpline}),
    "planar": (IMAGES, {"posterior": Planar}),
    "radial": (IMAGES, {"posterior": Radial}),
    "reflections": (IMAGES, {"posterior": Householder}),
    "bits in turn": (
        IMAGES.round(),
        {
            "likelihood": AutoregressiveBernoulli,
            "prior": AutoregressiveBernoulli,
            "posterior": AutoregressiveBernoulli,
        },
    ),
    "pixels in turn": (
        IMAGES.round(),
        {"likelihood": partial(PixelCNN, levels=1, num_layers=2, width=4, num_context=2)},
    ),
    "sphere": (IMAGES, {"prior": UniformSphere, "posterior": VonMisesFisher}),
    "recurrent": (
        SYMBOLS,
        {
            **SENTENCES,
            "encoder": partial(Recurrent, num_symbols=5, hidden=8),
            "decoder": partial(RecurrentDecoder, hidden=8),
        },
    ),
    "long memory": (
        SYMBOLS,
        {
            **SENTENCES,
            "encoder": partial(Recurrent, num_symbols=5, hidden=8, cell=nn.LSTM),
            "decoder": partial(RecurrentDecoder, hidden=8, cell=nn.LSTM),
        },
    ),
    "transformer": (
        SYMBOLS,
        {
            **SENTENCES,
            "encoder": partial(Transformer, num_symbols=5),
            "decoder": TransformerDecoder,
        },
    ),
}
FAST = ("normal", "bits in turn")


class Density(nn.Module):
    """The log-density of a value under what a part returns."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, context, value):
        return self.part(context).log_prob(value)


class Numbers(nn.Module):
    """All numbers of the distribution that a part returns, from its innermost one."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, context):
        fn = self.part(context)
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        return [value for value in vars(fn).values() if isinstance(value, torch.Tensor)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def assemble(x, parts):
    torch.manual_seed(0)
    networks = {} if "encoder" in parts else MLPS
    parts = {"likelihood": Normal, **networks, **parts}
    return VAE.assemble(tuple(x.shape[1:]), (2,), data=x, **parts).eval()


def check(module, *args):
    with pyro.validation_enabled(True), torch.no_grad():
        exported = torch.export.export(module.eval(), args).module()
        for found, expected in zip(exported(*args), module(*args), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("x", "parts"),
    [
        pytest.param(*row, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, row in PARTS.items()
    ],
)
def test_encoder_and_decoder_are_exported_with_validation_on(x, parts):
    vae, x = assemble(x, parts), x[:3]
    z = nn.functional.normalize(torch.ones(3, 2), dim=-1)
    z = z.round() if parts.get("prior") in (Bernoulli, AutoregressiveBernoulli) else z
    check(Numbers(vae.posterior), x)
    for part, context, value in ((vae.posterior, x, z), (vae.likelihood, z, x)):
        check(Density(part), context, value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_flow_without_an_inverse_is_exported_as_what_it_sends_noise_to():
    class Sent(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, context, noise):
            for step in self.part(context).transforms:
                noise = step(noise)
            return noise

    vae = assemble(IMAGES, {"posterior": Sylvester})
    check(Sent(vae.posterior), IMAGES[:3], torch.randn(3, 2))
