"""The command line as a test runs it: in this process, or as the installed script."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import evaluation
from pyro_vae.cli import main
from pyro_vae.evaluation import annealed_chains

SCALE = ["--epochs", "2", "--batch-size", "8", "--latent", "2", "--num-samples", "2"]
TINY = [*SCALE, "--network", "MLP(hidden=[8])", "--device", "cpu"]
SCRIPT = Path(sys.executable).with_name("pyro-vae")

PROGRAM = """
import collections.abc, torch, pyro, pyro.distributions as dist
from pyro.nn import PyroModule
from torch import nn

class MyVAE(PyroModule):
    def __init__(
        self, event_shape, latent_shape, hidden: int = 4,
        activation: collections.abc.Callable[[], nn.Module] = nn.Tanh,
    ):
        super().__init__()
        (self.width,), (self.latent,) = event_shape, latent_shape
        layers = nn.Linear(self.width, hidden), activation(), nn.Linear(hidden, self.latent)
        self.encoder = nn.Sequential(*layers)
        self.decoder = nn.Linear(self.latent, self.width)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample('z', dist.Normal(self.encoder(x), 0.5).to_event(1))
"""

FUNCTIONS = """
import torch, pyro, pyro.distributions as dist
encoder, decoder = torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)

def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))
"""

PRIOR = """
import pyro.distributions as dist
from pyro_vae.components import Family

class StudentPrior(Family):
    def __init__(self, event_shape, df: float = 5.0):
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        self.df = df

    def forward(self, raw):
        return dist.StudentT(self.df, raw.squeeze(-1 - len(self.event_shape)), 1.0).to_event(1)
"""


def train(*arguments: str | Path) -> int:
    """Run ``pyro-vae train`` on a tiny scale; later arguments win."""
    return main(["train", *TINY, *map(str, arguments)])


def shorten_annealing(monkeypatch: Any) -> None:
    """Let ``evaluate --ais --gaps`` take few steps of each kind."""
    monkeypatch.setattr(annealed_chains, "_WARM_UP", 2)
    monkeypatch.setattr(annealed_chains, "_FEWEST_PILOT", 2)
    few = partial(evaluation.inference_gaps, num_updates=3, num_samples=8)
    monkeypatch.setattr(evaluation, "inference_gaps", few)


def script(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    """Run the installed script to its end."""
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=600,
        check=False, **{"env": environment(), **options},
    )  # fmt: skip


def environment() -> dict[str, str]:
    # Unbuffered, a closed stdout would show at the first line rather than at the end.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return {**inherited, "OMP_NUM_THREADS": "1"}


def write_data(folder: Path) -> None:
    """Write one tiny file of each kind of data."""
    rng = np.random.default_rng(0)
    np.save(folder / "real.npy", rng.normal(size=(40, 3)).astype("f4"))
    np.save(folder / "counts.npy", rng.integers(0, 17, (40, 3)))
    np.save(folder / "bytes.npy", rng.integers(0, 256, (40, 6, 6)).astype("u1"))
    np.save(folder / "grey.npy", rng.random((40, 3)).astype("f4"))
    binary = rng.integers(0, 2, (40, 3)).astype("u1")
    np.savez(folder / "binary.npz", x=binary, y=np.arange(40) % 2)
    np.save(folder / "unit.npy", rng.uniform(0.05, 0.95, (40, 3)))
    np.save(folder / "onehot.npy", np.eye(3)[rng.integers(0, 3, 40)])
    np.save(folder / "simplex.npy", rng.dirichlet(np.full(3, 4.0), 40))
    directions = rng.normal(size=(40, 3))
    np.save(folder / "directions.npy", directions / np.linalg.norm(directions, axis=1)[:, None])
    lengths = rng.integers(0, 5, (40, 1))
    symbols = rng.integers(1, 6, (40, 4))
    np.save(folder / "sequences.npy", np.where(np.arange(4) < lengths, symbols, 0))
    columns = rng.normal(size=40), rng.integers(0, 2, 40), rng.integers(0, 4, 40)
    np.save(folder / "table.npy", np.stack([*columns, rng.poisson(30, 40)], 1))
    holes = rng.normal(size=(40, 3))
    np.save(folder / "holes.npy", np.where(rng.random((40, 3)) < 0.2, np.nan, holes))


def tree(folder: Path) -> dict[str, int]:
    """Return all files and folders below a folder, with their sizes."""
    return {
        str(path.relative_to(folder)): -1 if path.is_dir() else path.lstat().st_size
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }
