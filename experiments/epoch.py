"""An epoch of MNIST end to end: ``fit`` beside the loop of Pyro's VAE example.

The example's loop (DataLoader, ``SVI.step``, ``pyro.optim.Adam``) takes the 50,000 training images
as grey values that lie ready as floats, and evaluates nothing. ``fit`` takes them as bytes, each
binarised once, and evaluates the bound of the 10,000 validation images in every epoch. "One
epoch" is a whole call, from building the program on; "one of many" is a third of what four epochs
take longer than one. Each contender has a process of its own; they are visited in random order in
every round, after a first one that is not counted and fills the compiler's cache. The program is
784-400-20 with batches of 128; the record has medians over rounds.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import contenders
import numpy as np
from programs import Contender, Epochs, Perceptrons
from worker import Block, Worker

from pyro_vae import datasets, fit
from pyro_vae.datasets import from_arrays
from pyro_vae.engine import Binarize, Observation

__all__ = ["CONTENDERS", "curve", "measure", "table"]

_SIZES = (2048, 8192, 32768, 65536)
_PYRO = "Pyro's example"


@dataclass(frozen=True)
class Mnist(Perceptrons):
    """A perceptron on MNIST, read from ``root``."""

    root: Path = Path()

    def data(self) -> np.ndarray:
        """Return the training images, ``[50000, 784]``, grey in [0, 1]."""
        return _grey(self.root)

    def dataset(self) -> datasets.Dataset:
        """Return the images as stored."""
        return _mnist(self.root)


@lru_cache
def _mnist(root: Path) -> datasets.Dataset:
    return datasets.load("mnist", root=root)


@lru_cache
def _grey(root: Path) -> np.ndarray:
    return _mnist(root).train.x.flatten(1).float().div(255).numpy()


def example(program: Perceptrons) -> Epochs:
    """Run Pyro's example from the start."""
    return lambda num: contenders.pyro_example(program)(num)


def fitted(engine: str, program: Perceptrons) -> Epochs:
    """Run ``fit`` from the start."""
    data, observation = _given(program)

    def epochs(num: int) -> float:
        vae = contenders.vae(program)
        done = fit(
            vae, data, observation=observation, epochs=num, batch_size=program.batch, engine=engine
        )
        return -float(done.history[-1]["validation_elbo_nats"])

    return epochs


def _given(program: Perceptrons) -> tuple[datasets.Dataset, Observation | None]:
    if isinstance(program, Mnist):
        return program.dataset(), Binarize(255, resample=False)
    rows = program.data().reshape(-1, 1, program.side, program.side).astype(np.uint8)
    parts = {"train": rows, "validation": rows[:128], "test": rows[:128]}
    return from_arrays(parts, name="made"), None


CONTENDERS: dict[str, Contender] = {
    _PYRO: Contender(example, (Perceptrons, Mnist)),
    "fit, recorded": Contender(partial(fitted, "recorded"), (Perceptrons, Mnist)),
    "fit, compiled": Contender(partial(fitted, "compiled"), (Perceptrons, Mnist)),
    "fit": Contender(partial(fitted, "auto"), (Perceptrons, Mnist)),
}


def measure(data_root: Path | None, rounds: int, threads: int) -> dict[str, dict[str, Any]]:
    """Return for each contender the seconds of an epoch, and how many times Pyro's speed it has."""
    if data_root is None:
        raise SystemExit("--epoch reads MNIST: say where it lies with --data_root FOLDER")
    mnist = Mnist(28, (400,), 20, 128, root=data_root.resolve())
    ones: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    many: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with ExitStack() as stack:
        run = _runners(mnist, threads, stack)
        for number in range(rounds + 1):
            for name in random.sample(list(run), len(run)):
                print(f"round {number}: {name}", file=sys.stderr, flush=True)
                one, four = run[name](1).seconds, run[name](4).seconds
                if number:
                    ones[name].append(one)
                    many[name].append((four - one) / 3)
    return {name: _row(name, ones, many) for name in CONTENDERS}


def curve(threads: int) -> dict[str, Any]:
    """Return the seconds of one of many epochs, and memory, against the number of data."""
    base = Perceptrons(28, (400,), 20, 128)
    chosen = [name for name in CONTENDERS if name != "fit"]  # its engine depends on the size
    lines: dict[str, Any] = {name: {"size": [], "seconds": [], "peak_mib": []} for name in chosen}
    for size in _SIZES:
        print(f"data {size}", file=sys.stderr, flush=True)
        with ExitStack() as stack:
            run = _runners(replace(base, num_data=size), threads, stack)
            more = 4 * (_SIZES[-1] // size)  # as long for all, as starting takes seconds, too
            for name in chosen:
                run[name](1)
                one, many = run[name](1), run[name](1 + more)
                lines[name]["size"].append(size)
                lines[name]["seconds"].append((many.seconds - one.seconds) / more)
                lines[name]["peak_mib"].append(many.peak_mib)
    return {"program": "MLP 784-400-20, batch 128", "contenders": lines}


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Return the lines of a table of what ``measure`` found."""
    yield "| contender | one epoch, s | times Pyro's | one of many, s | times Pyro's |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, row in found.items():
        cells = [f"{row[key]:.2f}" for key in row if key != "rounds"]
        yield f"| {name} | {' | '.join(cells)} |"


def _runners(
    program: Perceptrons, threads: int, stack: ExitStack
) -> dict[str, Callable[[int], Block]]:
    found: dict[str, Callable[[int], Block]] = {}
    for name, contender in CONTENDERS.items():
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found[name] = stack.enter_context(Worker(contender, program, threads, cache)).run
    return found


def _row(name: str, ones: dict[str, list[float]], many: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for kind, times in (("one_epoch", ones), ("one_of_many", many)):
        row[f"{kind}_seconds"] = statistics.median(times[name])
        row[f"{kind}_times_pyro"] = statistics.median(times[_PYRO]) / row[f"{kind}_seconds"]
    return {**row, "rounds": {"one_epoch": ones[name], "one_of_many": many[name]}}
