"""Does every combination of a prior, a likelihood, a posterior and an objective train?

    python experiments/combinations.py --processes 2 --share 1.0

All parts that the command line offers by name, with their default arguments, at tiny sizes: four
latents, six data. Every prior, posterior and objective are put to the checks that ``fit`` makes
before it trains, with the first likelihood; no likelihood refuses another part, only data, and here
each has data of its own kind. What is refused counts for all likelihoods, under its reason. What is
not is trained for two steps, as plain Pyro runs it; it has failed if there is an error or a loss
that is not finite. A share below one trains as much of it, drawn at random.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import record
import torch
from jsonargparse import auto_cli
from tqdm import tqdm

from pyro_vae import SVI
from pyro_vae.cli.combinations import Combination, Parts, kind_of, small_parts
from pyro_vae.engine.optimizers import adam

__all__ = ["Found", "main", "pair"]


@dataclass
class Found:
    """What became of the combinations of one prior and posterior, or of all.

    Attributes:
        refused: How many, by the kind of the reason.
        legal: How many are not.
        trained: How many of these were trained.
        failed: What happened, by the names of the parts.
    """

    refused: Counter[str] = field(default_factory=Counter)
    legal: int = 0
    trained: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Take up what was found of others."""
        self.refused.update(other.refused)
        self.legal += other.legal
        self.trained += other.trained
        self.failed.update(other.failed)


def pair(parts: Parts, prior: str, posterior: str, share: float = 1.0, seed: int = 0) -> Found:
    """Ask of every objective with this prior and posterior, and train what is not refused.

    Args:
        parts: All parts.
        prior: Its name.
        posterior: Its name.
        share: How much of what could be trained is, between 0 and 1.
        seed: Of the draw.
    """
    found, dice = Found(), random.Random(f"{seed} {prior} {posterior}")
    first, able = next(iter(parts.likelihoods)), []
    plain = _combined(parts, prior, first, posterior, next(iter(parts.objectives)))
    for objective, reason in plain.refusals(parts.objectives).items():
        if reason is None:
            able.append(objective)
        else:
            found.refused[kind_of(reason)] += len(parts.likelihoods)
    found.legal = len(able) * len(parts.likelihoods)
    for likelihood in parts.likelihoods:
        chosen = [objective for objective in able if dice.random() < share]
        found.trained += len(chosen)
        for objective, error in _train(parts, prior, likelihood, posterior, chosen):
            found.failed[f"{prior}, {likelihood}, {posterior}, {objective}"] = error
    return found


def _combined(
    parts: Parts, prior: str, likelihood: str, posterior: str, objective: str
) -> Combination:
    return Combination(
        (prior, parts.priors[prior]),
        (likelihood, parts.likelihoods[likelihood]),
        (posterior, parts.posteriors[posterior]),
        (objective, parts.objectives[objective]),
    )


def _train(
    parts: Parts, prior: str, likelihood: str, posterior: str, objectives: list[str]
) -> Iterator[tuple[str, str]]:
    """Train one program with each objective; yield those that fail, and why."""
    if not objectives:
        return
    vae, x = _combined(parts, prior, likelihood, posterior, objectives[0]).program()
    start = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    for objective in objectives:
        vae.load_state_dict(start)
        try:
            loss = parts.objectives[objective]()
            svi = SVI(vae.model, vae.guide, partial(adam, lr=1e-3), loss)
            losses = torch.tensor([float(svi.update(x)) for _ in range(2)])
        except Exception as error:
            yield objective, f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if not bool(losses.isfinite().all()):
                yield objective, f"losses {losses.tolist()}"


def _alone(task: tuple[str, str, float, int]) -> Found:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Pyro's guesses of how deep plates are nested
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*found no sample sites configured")
        return pair(small_parts(), *task)


def main(processes: int = 2, share: float = 1.0, seed: int = 0, name: str = "combinations") -> None:
    """Put all combinations to the test; print the counts and write the record."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a number above 0, at most 1")
    start, parts, found = time.perf_counter(), small_parts(), Found()
    tasks = [(prior, q, share, seed) for prior in parts.priors for q in parts.posteriors]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for one in tqdm(pool.imap_unordered(_alone, tasks), total=len(tasks), unit="pair"):
            found.add(one)
    counts: dict[str, Any] = {
        axis: len(getattr(parts, axis))
        for axis in ("priors", "likelihoods", "posteriors", "objectives")
    }
    counts |= {
        "combinations": found.legal + found.refused.total(),
        "legal": found.legal,
        "refused": found.refused.total(),
        "trained": found.trained,
        "failed": len(found.failed),
    }
    for what, number in counts.items():
        print(f"{what:<14}{number:>10,}")
    path = record.write(
        name,
        {
            "protocol": " ".join(__doc__.partition("1.0\n\n")[2].split()),
            "command": record.command(),
            "share": share,
            "seed": seed,
            **counts,
            "refused_for": dict(found.refused.most_common()),
            "failed_with": dict(sorted(found.failed.items())),
            "seconds": time.perf_counter() - start,
        },
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
