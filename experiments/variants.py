"""Programs that differ in one part, for what the part costs: ``multiples.py`` times them.

They are apart from the command, so that a contender's own process can import them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from contenders import images, in_turn
from programs import Epochs, Perceptrons

import pyro_vae.components as components
import pyro_vae.inference as inference
from pyro_vae import SVI, VAE
from pyro_vae.engine.optimizers import adam

__all__ = ["GROUPS", "Group", "Member", "trained"]


@dataclass(frozen=True)
class Group:
    """Programs that differ in one part.

    Attributes:
        program: The sizes of their data and networks.
        members: By name, what builds an object with ``model`` and ``guide``, and the objective.
            The first is what the others are multiples of.
        engine: How their steps are run.
    """

    program: Perceptrons
    members: dict[str, Member]
    engine: str = "recorded"


@dataclass(frozen=True)
class Member:
    """A program, built from the sizes of its group, and the objective that it is fitted with."""

    build: Callable[[Perceptrons], Any]
    objective: Callable[[], Any] = inference.ELBO


def assembled(program: Perceptrons, **parts: Any) -> VAE:
    """Build a VAE of these sizes with other parts than the plain ones."""
    network = parts.pop("network", partial(components.MLP, hidden=program.hidden))
    image = (1, program.side, program.side)
    data = torch.from_numpy(program.data()).unflatten(-1, image)
    return VAE.assemble(image, (program.latents,), network=network, data=data, **parts)


def trained(engine: str, member: Member, program: Perceptrons) -> Epochs:
    """Return what steps through a program's epochs."""
    built, rate = member.build(program), partial(adam, lr=1e-3)
    svi = SVI(built.model, built.guide, rate, member.objective(), engine=engine)
    return in_turn(svi.update, images(program), program)


def _with(**parts: Any) -> Member:
    return Member(partial(assembled, **parts))


def _objectives() -> Iterator[tuple[str, Group]]:
    plain, bits = (
        partial(assembled),
        partial(assembled, prior=components.Bernoulli, posterior=components.Bernoulli),
    )
    normal = {
        "ELBO": partial(inference.ELBO, 8),
        "AnalyticELBO": partial(inference.AnalyticELBO, 8),
        "IWAE": partial(inference.IWAE, 8),
        "Renyi": partial(inference.Renyi, 0.5, 8),
        "MIWAE": partial(inference.MIWAE, 8, 2),
        "CIWAE": partial(inference.CIWAE, 0.5, 8),
        "PIWAE": partial(inference.PIWAE, 8, 2),
        "DReG": partial(inference.DReG, 8),
        "RWS": partial(inference.RWS, 8),
        "RWSDReG": partial(inference.RWSDReG, 8),
        "TVO": partial(inference.TVO, 8),
        "BetaVAE": partial(inference.BetaVAE, 4.0, 8),
        "Capacity": partial(inference.Capacity, 25.0, num_particles=8),
        "FreeBits": partial(inference.FreeBits, 0.5, num_particles=8),
        "InfoVAE": partial(inference.InfoVAE, num_particles=8),
        "BetaTCVAE": partial(inference.BetaTCVAE, num_data=50_000, num_particles=8),
        "DIPVAE": partial(inference.DIPVAE, num_particles=8),
    }
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
    for name, objectives, build in (("normal", normal, plain), ("binary", scored, bits)):
        members = {title: Member(build, objective) for title, objective in objectives.items()}
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
_NETWORKS = {
    "MLP": partial(components.MLP, hidden=(300, 300)),
    "Convolutional": partial(components.Convolutional, channels=(16, 32), hidden=300),
}


def _parts() -> Iterator[tuple[str, Group]]:
    for role, parts in (("prior", _PRIORS), ("posterior", _POSTERIORS), ("network", _NETWORKS)):
        members = {name: _with(**{role: part}) for name, part in parts.items()}
        yield f"{role}s, MNIST 784-300-300-40, batch 100", Group(_SIZES, members)


GROUPS: dict[str, Group] = {**dict(_objectives()), **dict(_parts())}
