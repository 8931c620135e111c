"""The programs whose steps are timed, as sizes alone, and what a contender is.

Nothing here needs torch, so that a contender's process holds its own toolkit and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "PROGRAMS",
    "AutoregressiveGuide",
    "Contender",
    "Convolutions",
    "Epochs",
    "Ladder",
    "NotHere",
    "Perceptrons",
    "Program",
    "SplinePrior",
]

Epochs = Callable[[int], float]
"""Runs so many epochs; returns the mean loss per datum of the last one, in nats."""


class NotHere(Exception):
    """A contender that cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Program:
    """A VAE on binary images with standard normal latents and a diagonal normal posterior.

    Args:
        side: Images are ``side * side`` pixels.
        hidden: The sizes of the encoder's hidden layers; the decoder has them, too.
        latents: The number of latents.
        batch: Data per step.
        particles: Samples of the latents for each datum; more than one make it an IWAE.
        num_data: Data per epoch; None for as many as timing a step needs.
    """

    side: int
    hidden: tuple[int, ...]
    latents: int
    batch: int
    particles: int = 1
    num_data: int | None = None

    @property
    def pixels(self) -> int:
        """The number of values of one datum."""
        return self.side**2

    @property
    def num_batches(self) -> int:
        """The number of batches of an epoch."""
        if self.num_data is not None:
            return self.num_data // self.batch
        return max(8, min(40, 8192 // (self.batch * self.particles)))

    def data(self) -> np.ndarray:
        """Return an epoch's data: images whose pixels hang together, ``[N, side * side]``.

        Eight factors stand behind them, so that there is something for latents to learn.
        """
        random = np.random.default_rng(0)
        shown = random.standard_normal((self.num_batches * self.batch, 8), dtype=np.float32)
        loadings = random.standard_normal((8, self.pixels), dtype=np.float32)
        noise = random.logistic(size=(len(shown), self.pixels)).astype(np.float32)
        return (shown @ loadings + noise > 2.0).astype(np.float32)


class Perceptrons(Program):
    """Encoder and decoder are perceptrons with tanh."""


class Convolutions(Program):
    """Encoder and decoder are convolutional; ``hidden`` are their channels."""


class AutoregressiveGuide(Perceptrons):
    """The posterior goes through two inverse autoregressive flows.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
    """


class SplinePrior(Perceptrons):
    """The prior is a standard normal through two coupling layers of rational splines.

    References:
        Neural Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019)
    """


@dataclass(frozen=True)
class Ladder(Program):
    """A ladder of layers of normal latents; every step up and down is a perceptron with tanh.

    Args:
        layers: The number of latents of each layer, from the data up; ``latents`` is not looked at.

    References:
        Ladder Variational Autoencoders (Sønderby et al., 2016)
    """

    layers: tuple[int, ...] = (64, 32, 16, 8, 4)


PROGRAMS: dict[str, Program] = {
    "digits, MLP 64-128-20, batch 64": Perceptrons(8, (128,), 20, 64),
    "MNIST, MLP 784-400-20, batch 128": Perceptrons(28, (400,), 20, 128),
    "MNIST, MLP 784-400-20, batch 1024": Perceptrons(28, (400,), 20, 1024),
    "MNIST, IWAE 784-200-200-50, 50 particles, batch 20": Perceptrons(28, (200, 200), 50, 20, 50),
    "MNIST, convolutional, batch 128": Convolutions(28, (32, 64), 20, 128),
    "MNIST, IAF guide, batch 128": AutoregressiveGuide(28, (400,), 20, 128),
    "MNIST, spline flow prior, batch 128": SplinePrior(28, (400,), 20, 128),
    "MNIST, ladder 64-32-16-8-4, batch 128": Ladder(28, (256,), 64, 128),
}


@dataclass(frozen=True)
class Contender:
    """One way to train a program.

    Args:
        build: Returns what runs its epochs; imports what only this contender needs.
        programs: The kinds of program that it is written for.
        single: Whether it knows one particle only.
        fast: Whether it takes oneDNN's products, where they are true float32.
        uncompiled: The contender that its compilation has to pay off against; None if nothing is
            compiled.
    """

    build: Callable[[Any], Epochs]
    programs: tuple[type[Program], ...]
    single: bool = False
    fast: bool = False
    uncompiled: str | None = None

    def runs(self, program: Program) -> bool:
        """Whether it is written for this program."""
        return type(program) in self.programs and not (self.single and program.particles > 1)
