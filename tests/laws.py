"""The tables of members and the shared laws: a new member is one line in a table."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_vae.components import (
    MLP,
    AffineCoupling,
    Automatic,
    Bernoulli,
    Binomial,
    Categorical,
    CommittedNormal,
    ContinuousBernoulli,
    Convolutional,
    ConvolutionalResidual,
    DiagonalNormal,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Family,
    FullNormal,
    GatedMLP,
    Householder,
    Incomplete,
    InverseAutoregressive,
    LogitNormal,
    LowRankNormal,
    MaskedAutoregressive,
    MixtureOfNormals,
    NeuralSpline,
    Normal,
    OptimalScale,
    PerDimensionScale,
    Planar,
    Radial,
    Recurrent,
    RecurrentDecoder,
    Residual,
    SharedScale,
    SkipMLP,
    StandardNormal,
    Transformer,
    TransformerDecoder,
)
from pyro_vae.components.relaxed import RelaxedBernoulli, StraightThroughBernoulli
from pyro_vae.models import VAE

# ---------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Member:
    """A family over one number, and how to integrate over its support."""

    build: Callable[[tuple[int, ...]], Family]
    support: tuple[float, ...] | None = None  # all values; None: an interval of real numbers
    interval: tuple[float, float] = (-60.0, 60.0)  # before the map to the support


FAMILIES: dict[str, Member] = {
    "Bernoulli": Member(Bernoulli, support=(0.0, 1.0)),
    "Binomial": Member(partial(Binomial, total_count=7), support=tuple(map(float, range(8)))),
    "Normal": Member(Normal),
    "Normal, fixed scale": Member(partial(Normal, scale=0.3)),
    "Normal, shared scale": Member(partial(Normal, scale=SharedScale)),
    "Normal, scale per dimension": Member(partial(Normal, scale=PerDimensionScale)),
    "Normal, optimal scale": Member(partial(Normal, scale=OptimalScale)),
    "ContinuousBernoulli": Member(ContinuousBernoulli, interval=(-30.0, 30.0)),
    "LogitNormal": Member(LogitNormal, interval=(-30.0, 30.0)),
    "Categorical": Member(
        partial(Categorical, num_categories=5), support=tuple(map(float, range(5)))
    ),
    "DiscretizedLogistic": Member(
        partial(DiscretizedLogistic, levels=6), support=tuple(map(float, range(7)))
    ),
    "DiscretizedLogisticMixture": Member(
        partial(DiscretizedLogisticMixture, levels=5, num_components=3),
        support=tuple(map(float, range(6))),
    ),
    "Incomplete Normal": Member(Incomplete),
    "Incomplete Categorical": Member(
        partial(Incomplete, family=partial(Categorical, num_categories=3)), support=(0.0, 1.0, 2.0)
    ),
    "DiagonalNormal": Member(DiagonalNormal),
    "CommittedNormal": Member(partial(CommittedNormal, rate=1.0)),
    "StandardNormal": Member(StandardNormal),
    "MixtureOfNormals": Member(partial(MixtureOfNormals, num_components=3)),
    "LowRankNormal": Member(LowRankNormal),
    "FullNormal": Member(FullNormal),
    "Planar": Member(partial(Planar, num_flows=1)),
    "Radial": Member(Radial),
    "Householder": Member(Householder),
    "RelaxedBernoulli": Member(RelaxedBernoulli, interval=(-30.0, 30.0)),
    "StraightThroughBernoulli": Member(StraightThroughBernoulli, support=(0.0, 1.0)),
    "Automatic Laplace": Member(partial(Automatic, distribution="Laplace")),
    "Automatic StudentT": Member(partial(Automatic, distribution="StudentT", df=9.0)),
    "Automatic Logistic": Member(partial(Automatic, distribution=dist.Logistic)),
    "Automatic Gamma": Member(partial(Automatic, distribution="Gamma"), interval=(-60.0, 7.0)),
    "Automatic Beta": Member(partial(Automatic, distribution="Beta"), interval=(-30.0, 30.0)),
    "Automatic Binomial": Member(
        partial(Automatic, distribution="Binomial", total_count=5),
        support=tuple(map(float, range(6))),
    ),
    "Automatic Poisson": Member(
        partial(Automatic, distribution="Poisson"), support=tuple(map(float, range(80)))
    ),
    "Automatic NegativeBinomial": Member(
        Automatic.of(dist.NegativeBinomial), support=tuple(map(float, range(150)))
    ),
    "Automatic ZeroInflatedPoisson": Member(
        Automatic.of(dist.ZeroInflatedPoisson), support=tuple(map(float, range(80)))
    ),
    "Automatic ZeroInflatedNegativeBinomial": Member(
        Automatic.of(dist.ZeroInflatedNegativeBinomial, total_count=3.0),
        support=tuple(map(float, range(150))),
    ),
    "Automatic Categorical": Member(
        partial(Automatic, distribution="Categorical", num_categories=4),
        support=(0.0, 1.0, 2.0, 3.0),
    ),
}

# Families over two dimensions or more.
FLOWS: dict[str, Callable[..., Family]] = {
    "InverseAutoregressive": partial(InverseAutoregressive, hidden_dims=[6], num_context=3),
    "InverseAutoregressive, no context": partial(
        InverseAutoregressive, hidden_dims=[6, 5], num_context=0
    ),
    "MaskedAutoregressive": partial(MaskedAutoregressive, hidden_dims=[6], num_context=3),
    "MaskedAutoregressive, one step": partial(
        MaskedAutoregressive, num_flows=1, hidden_dims=[6], num_context=2
    ),
    "AffineCoupling": partial(AffineCoupling, num_flows=3, hidden_dims=[6], num_context=3),
    "NeuralSpline": partial(NeuralSpline, hidden_dims=[6], num_bins=4, num_context=3),
}

# Constants under which more of Pyro's distributions are families.
CONSTANTS: dict[str, dict[str, Any]] = {
    "BetaBinomial": {"total_count": 5},
    "Binomial": {"total_count": 5},
    "DirichletMultinomial": {"total_count": 5},
    "ExtendedBetaBinomial": {"total_count": 5},
    "ExtendedBinomial": {"total_count": 5},
    "LKJCholesky": {"dim": 3},
    "Pareto": {"scale": 1.0},
    "RelaxedBernoulli": {"temperature": torch.tensor(0.5)},
    "RelaxedBernoulliStraightThrough": {"temperature": torch.tensor(0.5)},
    "RelaxedOneHotCategorical": {"temperature": torch.tensor(0.5)},
    "RelaxedOneHotCategoricalStraightThrough": {"temperature": torch.tensor(0.5)},
    "AffineBeta": {"loc": 0.0, "scale": 2.0},
}


def all_distributions() -> list[str]:
    """Return the name of every class of ``pyro.distributions``."""
    bases = (dist.Distribution, torch.distributions.Distribution)
    return sorted(
        name
        for name, member in vars(dist).items()
        if inspect.isclass(member) and issubclass(member, bases)
    )


def density_on_a_grid(distribution: Any, member: Member) -> tuple[Tensor, Tensor, Any]:
    """Return unconstrained nodes, the density there, and the map from them to the support."""
    to_support = biject_to(distribution.support.base_constraint)
    nodes = torch.linspace(*member.interval, 100_001, dtype=torch.float64)
    x = to_support(nodes)
    shape = (-1, *[1] * len(distribution.batch_shape), 1)
    log_density = distribution.log_prob(x.reshape(shape))
    jacobian = to_support.log_abs_det_jacobian(nodes, x).reshape(shape[:-1])
    return nodes, (log_density + jacobian).exp(), to_support


def total_mass(distribution: Any, member: Member) -> Tensor:
    """Integrate the density of ``[B]`` distributions over one number, by sum or quadrature."""
    if member.support is not None:
        nodes = torch.tensor(member.support, dtype=torch.float64)
        return distribution.log_prob(nodes[:, None, None]).exp().sum(0)
    nodes, density, _ = density_on_a_grid(distribution, member)
    return torch.trapezoid(density, nodes, dim=0)


# ---------------------------------------------------------------------------- networks

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "MLP": partial(MLP, hidden=(5, 4)),
    "Convolutional": partial(Convolutional, channels=(2, 3, 4), hidden=5),
    "Convolutional, one layer": partial(Convolutional, channels=(3,), hidden=4),
    "GatedMLP": partial(GatedMLP, hidden=(5, 4)),
    "Residual": partial(Residual, width=5, num_blocks=2),
    "SkipMLP": partial(SkipMLP, hidden=(5, 4)),
    "ConvolutionalResidual": partial(ConvolutionalResidual, channels=(2, 3, 4), hidden=5),
    "ConvolutionalResidual, two blocks": partial(
        ConvolutionalResidual, channels=(3,), num_blocks=2, hidden=4
    ),
}
NORMALISED: dict[str, Callable[..., nn.Module]] = {
    "MLP": partial(NETWORKS["MLP"], normalise=nn.BatchNorm1d),
    "Residual": partial(NETWORKS["Residual"], normalise=nn.BatchNorm1d),
    "SkipMLP": partial(NETWORKS["SkipMLP"], normalise=nn.LayerNorm),
    "Convolutional": partial(NETWORKS["Convolutional"], normalise=nn.BatchNorm2d),
    "ConvolutionalResidual": partial(
        NETWORKS["ConvolutionalResidual"], normalise=partial(nn.GroupNorm, 1)
    ),
}


@dataclass(frozen=True)
class OfSequences:
    """A network between a sequence and a vector, and the shapes that it is tried on."""

    build: Callable[..., nn.Module]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    num_symbols: int | None = None  # None: its input is real numbers

    def inputs(self, *batch: int) -> Tensor:
        """Draw inputs in float64, of which the symbol 0 is padding, at the end."""
        if self.num_symbols is None:
            return torch.randn(*batch, *self.in_shape).double()
        symbols = torch.randint(1, self.num_symbols, (*batch, *self.in_shape))
        lengths = torch.randint(0, self.in_shape[0] + 1, (*batch, 1))
        return (symbols * (torch.arange(self.in_shape[0]) < lengths)).double()


def of_sequences(build: Callable[..., nn.Module], cell: Any = None) -> dict[str, OfSequences]:
    """Return an encoder of symbols, and one of real numbers."""
    options = {} if cell is None else {"cell": cell}
    of_symbols = partial(build, num_symbols=4, padding=0, **options)
    return {
        "symbols": OfSequences(of_symbols, (6,), (2, 3), num_symbols=4),
        "numbers": OfSequences(partial(build, **options), (6, 2), (2, 3)),
    }


_RECURRENT = partial(Recurrent, hidden=4, embedding=3)
_TRANSFORMER = partial(Transformer, width=4, num_heads=2)
_WRITES_GRU = partial(RecurrentDecoder, hidden=4)
_WRITES = partial(TransformerDecoder, width=4, num_heads=2)
SEQUENCES: dict[str, OfSequences] = {
    **{f"Recurrent, {kind}": each for kind, each in of_sequences(_RECURRENT).items()},
    **{f"LSTM, {kind}": each for kind, each in of_sequences(_RECURRENT, nn.LSTM).items()},
    **{f"Transformer, {kind}": each for kind, each in of_sequences(_TRANSFORMER).items()},
    "RecurrentDecoder": OfSequences(_WRITES_GRU, (3,), (4, 6)),
    "RecurrentDecoder, LSTM of two layers": OfSequences(
        partial(_WRITES_GRU, cell=nn.LSTM, num_layers=2), (1, 3), (2, 6, 2)
    ),
    "TransformerDecoder": OfSequences(_WRITES, (3,), (4, 6)),
    "TransformerDecoder, numbers": OfSequences(_WRITES, (1, 3), (2, 6, 2)),
}

# ---------------------------------------------------------------------------- programs

NUM_ROWS, NUM_DIMS, NUM_LATENTS = 6, 4, 2


@dataclass(frozen=True)
class Pair:
    """A program, its data, and what ``Program.check`` should say of it."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Tensor, ...]
    latents: tuple[str, ...] = ("z",)
    nesting: int = 1
    vectorizes: bool = True


def binary(*shape: int) -> Tensor:
    """Return fixed binary data in float64."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 2, shape, generator=generator).double()


X = partial(binary, NUM_ROWS, NUM_DIMS)


def vae_mlp() -> Pair:
    vae = VAE.assemble((NUM_DIMS,), (NUM_LATENTS,), network=partial(MLP, hidden=(5,))).double()
    return Pair(vae.model, vae.guide, (X(),))


def vae_convolutional() -> Pair:
    network = partial(Convolutional, channels=(2, 3), hidden=4)
    vae = VAE.assemble((1, 5, 4), (NUM_LATENTS,), network=network, prior=DiagonalNormal).double()
    return Pair(vae.model, vae.guide, (binary(NUM_ROWS, 1, 5, 4),))


def functions_with_modules() -> Pair:
    decoder = nn.Linear(NUM_LATENTS, NUM_DIMS).double()
    encoder = nn.Linear(NUM_DIMS, 2 * NUM_LATENTS).double()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(NUM_LATENTS)
            z = pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x), NUM_LATENTS]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw_scale.exp()).to_event(1))

    return Pair(model, guide, (X(),))


def functions_with_params() -> Pair:
    def model(x):
        weight = pyro.param("weight", lambda: torch.ones(NUM_LATENTS, NUM_DIMS).double())
        bias = pyro.param("bias", torch.zeros(NUM_DIMS).double())
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=z @ weight + bias).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.full((NUM_DIMS, NUM_LATENTS), 0.1).double())
        scale = pyro.param(
            "scale", torch.ones(NUM_LATENTS).double(), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, scale).to_event(1))

    return Pair(model, guide, (X(),))


class _Half(PyroModule):
    """A model or guide that is a PyroModule; both halves use the same attribute names."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](in_size, out_size)
        self.scale = PyroParam(torch.ones(NUM_LATENTS), constraint=dist.constraints.positive)


class ModelModule(_Half):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(NUM_LATENTS), self.scale).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class GuideModule(_Half):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), self.scale).to_event(1))


def two_modules() -> Pair:
    model = ModelModule(NUM_LATENTS, NUM_DIMS).double()
    guide = GuideModule(NUM_DIMS, NUM_LATENTS).double()
    return Pair(model, guide, (X(),))


def two_latents() -> Pair:
    class Hierarchy(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(NUM_DIMS, 2), nn.Linear(2, 2)
            self.top, self.out = nn.Linear(2, 1), nn.Linear(2, NUM_DIMS)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                loc = self.down(z2.expand(*z2.shape[:-1], 2))
                z1 = pyro.sample("z1", dist.Normal(loc, 0.7).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.out(z1)).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(self.up(x), 0.5).to_event(1))
                pyro.sample("z2", dist.Normal(self.top(z1), 0.8).to_event(1))

    module = Hierarchy().double()
    return Pair(module.model, module.guide, (X(),), latents=("z1", "z2"))


def labelled() -> Pair:
    table = nn.Embedding(3, NUM_LATENTS).double()
    decoder = nn.Linear(NUM_LATENTS, NUM_DIMS).double()

    def model(x, y):
        pyro.module("table", table)
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(table(y), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(3, NUM_LATENTS).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc[y], 0.5).to_event(1))

    return Pair(model, guide, (X(), torch.arange(NUM_ROWS) % 3))


def inner_plate() -> Pair:
    """Four pixels as a plate inside the datum, each with a latent of its own beside z."""

    def model(x):
        weight = pyro.param("weight", torch.full((NUM_DIMS, 1), 0.5).double())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("pixels", NUM_DIMS, dim=-2):
                e = pyro.sample("e", dist.Normal(x.new_zeros(()), 0.5))
                logits = weight * z + e
                pyro.sample("x", dist.Bernoulli(logits=logits), obs=x.T)

    def guide(x):
        loc = pyro.param("loc", torch.full((NUM_DIMS,), 0.2).double())
        tilt = pyro.param("tilt", torch.full((NUM_DIMS, 1), 0.3).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.9))
            with pyro.plate("pixels", NUM_DIMS, dim=-2):
                pyro.sample("e", dist.Normal(tilt * (x.T - 0.5), 0.4))

    return Pair(model, guide, (X(),), latents=("z", "e"), nesting=2)


def flat_decoder(*, silently_wrong: bool = False) -> Pair:
    """A decoder that cannot take a particle dimension, or takes it for the data's."""
    decoder = nn.Linear(NUM_LATENTS, NUM_DIMS).double()

    def logits(z):
        if silently_wrong:
            return decoder(z - z.mean(0, keepdim=True))
        if z.dim() != 2:
            raise ValueError(f"expected [B, {NUM_LATENTS}], got {tuple(z.shape)}")
        return decoder(z)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=logits(z)).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.full((NUM_DIMS, NUM_LATENTS), 0.3).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.6).to_event(1))

    return Pair(model, guide, (X(),), vectorizes=False)


def masked() -> Pair:
    """A model that looks at the first pixels of some data only."""
    pair = functions_with_params()

    def model(x):
        bias = pyro.param("bias", torch.zeros(NUM_DIMS).double())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
            logits = bias + z.sum(-1, keepdim=True)
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return Pair(model, pair.guide, pair.args)


PROGRAMS: dict[str, Callable[[], Pair]] = {
    "VAE, MLP": vae_mlp,
    "VAE, convolutional": vae_convolutional,
    "functions, pyro.module": functions_with_modules,
    "functions, pyro.param": functions_with_params,
    "two PyroModules": two_modules,
    "two latents": two_latents,
    "labels": labelled,
    "inner plate": inner_plate,
    "no particles": flat_decoder,
    "mixes particles": partial(flat_decoder, silently_wrong=True),
    "mask": masked,
}

ELBOS: dict[str, Callable[[], Any]] = {
    "Trace_ELBO": Trace_ELBO,
    "Trace_ELBO, 2 particles": partial(Trace_ELBO, num_particles=2),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "RenyiELBO": partial(RenyiELBO, alpha=0.0, num_particles=3),
    "TraceEnum_ELBO": TraceEnum_ELBO,
}


def kolmogorov_bound(num: int, *, false_alarm: float) -> float:
    """Return the distance that a sample of ``num`` exceeds with this probability (asymptotic)."""
    return math.sqrt(-0.5 * math.log(false_alarm / 2) / num)
