"""Programs that differ in one part, for what the part costs: ``multiples.py`` times them.

They are apart from the command, so that a contender's own process can import them by name.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from contenders import in_turn
from programs import Epochs, Perceptrons
from torch import Tensor

import pyro_vae.components as components
import pyro_vae.inference as inference
import pyro_vae.models as models
from pyro_vae import SVI, VAE
from pyro_vae.cli.names import offered, stated
from pyro_vae.engine.optimizers import adam

__all__ = ["GROUPS", "Group", "Member", "trained"]


@dataclass(frozen=True)
class Group:
    """Programs that differ in one part.

    Attributes:
        program: The sizes of their data and networks.
        members: By name; the first is what the others are multiples of.
        engine: How their steps are run.
    """

    program: Perceptrons
    members: dict[str, Member]
    engine: str = "recorded"


@dataclass(frozen=True)
class Member:
    """A program with other parts than the plain ones, and the objective that it is fitted with.

    Attributes:
        parts: What ``assemble`` is given besides shapes and data.
        objective: Builds the objective.
        model: The class of the program.
        latent_shape: Of its latents; that of the group's program unless given.
        num_classes: Of a program that is given some labels, half of them; 0: of none.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    objective: Callable[[], Any] = inference.ELBO
    model: Any = VAE
    latent_shape: tuple[int, ...] = ()
    num_classes: int = 0

    def data(self, program: Perceptrons) -> Tensor:
        """Return an epoch's images: binary ones, or draws from the likelihood if it is another."""
        image = (1, program.side, program.side)
        rows = torch.from_numpy(program.data()).unflatten(-1, image)
        if "likelihood" not in self.parts:
            return rows
        likelihood = components.Conditional(self.parts["likelihood"](image))
        return likelihood().expand((len(rows),)).sample().float()

    def build(self, program: Perceptrons, data: Tensor) -> Any:
        """Build the program of these sizes."""
        parts = {"network": partial(components.MLP, hidden=program.hidden), **self.parts}
        parts |= {"num_classes": self.num_classes} if self.num_classes else {}
        image = (1, program.side, program.side)
        latents = self.latent_shape or (program.latents,)
        return self.model.assemble(image, latents, data=data, **parts)

    def batches(self, program: Perceptrons, data: Tensor) -> list[tuple[Tensor, ...]]:
        """Return what the steps of an epoch are called with."""
        if not self.num_classes:
            return [(rows,) for rows in data.split(program.batch)]
        labels = torch.arange(len(data)) % self.num_classes
        labelled = torch.arange(len(data)) % 2 == 0
        return [
            *zip(*(each.split(program.batch) for each in (data, labels, labelled)), strict=True)
        ]


def trained(engine: str, member: Member, program: Perceptrons) -> Epochs:
    """Return what steps through a program's epochs."""
    torch.manual_seed(0)
    data = member.data(program)
    built, rate = member.build(program, data), partial(adam, lr=1e-3)
    svi = SVI(built.model, built.guide, rate, member.objective(), engine=engine)
    batches = member.batches(program, data)
    return in_turn(lambda batch: svi.update(*batch), batches, program)


# With other arguments than their own.
_SPECIAL = {
    "MIWAE": partial(inference.MIWAE, 8, 2),
    "PIWAE": partial(inference.PIWAE, 8, 2),
    "BetaVAE": partial(inference.BetaVAE, 4.0, 8),
    "FreeBits": partial(inference.FreeBits, 0.5, num_particles=8),
    "BetaTCVAE": partial(inference.BetaTCVAE, num_data=50_000, num_particles=8),
}


def _of_particles() -> dict[str, Callable[[], Any]]:
    """Return the library's objectives that take particles of any latents, with eight of them."""
    return {
        name: partial(part, **{**stated(part, "example", {}), "num_particles": 8})
        for name, part in offered("objective").items()
        if part.__module__.startswith("pyro_vae.")
        and "num_particles" in inspect.signature(part).parameters
        and part is not inference.DisARM
    }


def _objectives() -> Iterator[tuple[str, Group]]:
    bits = {"prior": components.Bernoulli, "posterior": components.Bernoulli}
    normal = {"ELBO": partial(inference.ELBO, 8), **_of_particles(), **_SPECIAL}
    scored = {
        "ELBO": partial(inference.ELBO, 8),
        "RLOO": partial(inference.RLOO, 8),
        "NVIL": partial(inference.NVIL, num_particles=8),
        "VIMCO": partial(inference.VIMCO, 8),
        "DisARM": partial(inference.DisARM, 8),
        "RWS": partial(inference.RWS, 8),
        "TVO": partial(inference.TVO, 8),
    }
    sizes = Perceptrons(28, (200, 200), 50, 20)
    for name, objectives, parts in (("normal", normal, {}), ("binary", scored, bits)):
        members = {title: Member(parts, objective) for title, objective in objectives.items()}
        yield f"objectives, {name} latents, 8 particles, batch 20", Group(sizes, members)


_SIZES = Perceptrons(28, (300, 300), 40, 100)
_PRIORS = {
    "StandardNormal": components.StandardNormal,
    "DiagonalNormal": components.DiagonalNormal,
    "MixtureOfNormals, 500 components": partial(components.MixtureOfNormals, num_components=500),
    "VampPrior, 500 pseudo-inputs": components.VampPrior,
    "AffineCoupling": components.AffineCoupling,
    "MaskedAutoregressive": components.MaskedAutoregressive,
    "NeuralSpline": components.NeuralSpline,
}
_POSTERIORS = {
    "DiagonalNormal": components.DiagonalNormal,
    "LowRankNormal": components.LowRankNormal,
    "FullNormal": components.FullNormal,
    "Householder": components.Householder,
    "Planar": components.Planar,
    "Radial": components.Radial,
    "Sylvester": components.Sylvester,
    "InverseAutoregressive": components.InverseAutoregressive,
    "AffineCoupling": components.AffineCoupling,
    "NeuralSpline": components.NeuralSpline,
}


def _of_images() -> dict[str, Callable[..., Any]]:
    """Return the parts that are at home as likelihoods and take images, with their defaults."""
    found: dict[str, Callable[..., Any]] = {}
    for name, part in offered("likelihood").items():
        build = partial(part, **stated(part, "example", {}))
        if stated(part, "roles", ("prior",))[0] == "likelihood":
            with contextlib.suppress(ValueError):  # it is of vectors alone
                build((1, 2, 2))
                found[name] = build
    return found


_LIKELIHOODS = {
    "Bernoulli": components.Bernoulli,
    **_of_images(),
    "Laplace": partial(components.Automatic, distribution="Laplace"),
    "StudentT": partial(components.Automatic, distribution="StudentT"),
    "Poisson": partial(components.Automatic, distribution="Poisson"),
    "NegativeBinomial": partial(components.Automatic, distribution="NegativeBinomial"),
    "Categorical": partial(components.Categorical, num_categories=16),
    "AutoregressiveBernoulli": components.AutoregressiveBernoulli,
}
_LATENTS = {
    "normal": (components.StandardNormal, components.DiagonalNormal),
    "on a sphere": (components.UniformSphere, components.VonMisesFisher),
    "binary, by score function": (components.Bernoulli, components.Bernoulli),
    "binary, relaxed": (components.RelaxedBernoulli, components.RelaxedBernoulli),
    "binary, straight through": (components.StraightThroughBernoulli,) * 2,
    "one of 40, relaxed": (components.Concrete, components.Concrete),
    "one of 40, straight through": (components.StraightThroughCategorical,) * 2,
    "that keep a rate": (components.AutoregressiveNormal, components.CommittedNormal),
    "normal, of normalised means": (components.StandardNormal, components.BatchNormalizedNormal),
}
_NETWORKS = {
    "MLP": partial(components.MLP, hidden=(300, 300)),
    "GatedMLP": partial(components.GatedMLP, hidden=(300, 300)),
    "Residual": partial(components.Residual, width=300, num_blocks=2),
    "Convolutional": partial(components.Convolutional, channels=(16, 32), hidden=300),
    "ConvolutionalResidual": partial(components.ConvolutionalResidual, channels=(16, 32)),
}


def _parts() -> Iterator[tuple[str, Group]]:
    of_roles = {
        "prior": _PRIORS,
        "likelihood": _LIKELIHOODS,
        "posterior": _POSTERIORS,
        "network": _NETWORKS,
    }
    for role, parts in of_roles.items():
        members = {name: Member({role: part}) for name, part in parts.items()}
        yield f"{role}s, MNIST 784-300-300-40, batch 100", Group(_SIZES, members)
    pairs = {
        name: Member({"prior": prior, "posterior": posterior})
        for name, (prior, posterior) in _LATENTS.items()
    }
    yield "latents, MNIST 784-300-300-40, batch 100", Group(_SIZES, pairs)


_PROGRAMS = {
    "VAE": Member(),
    "Autoencoder": Member(model=models.Autoencoder, objective=inference.Reconstruction),
    "VQVAE, 64 codes": Member(
        {"posterior": partial(components.NearestCode, num_codes=64)}, model=models.VQVAE,
        latent_shape=(8, 5),
    ),
    "VQVAE, FiniteScalar": Member(
        {"posterior": components.FiniteScalar}, model=models.VQVAE, latent_shape=(8, 5)
    ),
    "GMVAE, 10 clusters": Member(model=models.GMVAE),
    "M2, 10 classes": Member(model=models.M2, num_classes=10),
}  # fmt: skip

GROUPS: dict[str, Group] = {
    **dict(_objectives()),
    **dict(_parts()),
    "programs, MNIST 784-300-300-40, batch 100": Group(_SIZES, _PROGRAMS),
    "programs compiled, MNIST 784-300-300-40, batch 100": Group(_SIZES, _PROGRAMS, "compiled"),
}
