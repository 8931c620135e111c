"""How a program is trained: all that is chosen before a run, in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pyro.infer import ELBO

from pyro_vae.datasets import Dataset
from pyro_vae.engine.callbacks import Callback
from pyro_vae.engine.defaults import BATCH_SIZE
from pyro_vae.engine.observations import AsFloat, Observation
from pyro_vae.engine.optimizers import Optim, adam
from pyro_vae.engine.turns import Turns
from pyro_vae.engine.weights import check_weights
from pyro_vae.inference.schedules import Cosine

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``fit`` takes by name, and what its arguments of the same names mean.

    Raises:
        ValueError: If a number is out of its range, or a file has no folder to be in.
    """

    objective: ELBO | None = None
    optim: Optim = adam
    schedule: Callable[[float], float] = field(default_factory=Cosine)
    observation: Observation = field(default_factory=AsFloat)
    epochs: int = 30
    batch_size: int | None = None
    labelled_share: float | None = None
    clip_norm: float | None = None
    patience: int | None = None
    weights: str = "best"
    device: str | torch.device = "auto"
    seed: int = 0
    out: Path | None = None
    init_from: Path | str | None = None
    resume: bool = False
    checkpoint_seconds: float = 30.0
    progress: bool | None = None
    log_tensorboard: bool = False
    engine: str = "auto"
    fast: bool = True
    precision: str = "float32"
    turns: Turns | None = None
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs={self.epochs}: give 0 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: give 1 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm}: the largest gradient norm is positive")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: give 1 or more epochs, or None")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: give an integer from 0 to 2**63 - 1")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds={self.checkpoint_seconds}: give 0 or more")
        check_weights(self.weights)
        if self.log_tensorboard and self.out is None:
            raise ValueError("log_tensorboard=True needs out=..., the folder to write them to")

    def rows_of_a_batch(self, data: Dataset) -> int:
        """Return the size of all batches but an epoch's last."""
        return self.batch_size or min(BATCH_SIZE, len(data.train))
