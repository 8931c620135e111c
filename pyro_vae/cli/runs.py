"""A run: build data, program and objective from a configuration; train, evaluate, report."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.budget import Budget
from pyro_vae.cli import data_record
from pyro_vae.cli.attempts import optional
from pyro_vae.cli.costs import MOST_OPERATIONS, naming_options
from pyro_vae.cli.data_defaults import single_numbers
from pyro_vae.cli.data_record import DataRecord
from pyro_vae.cli.data_weights import with_weights
from pyro_vae.cli.observed_sites import observed_support
from pyro_vae.cli.parser import components_built
from pyro_vae.cli.programs import build_program
from pyro_vae.datasets import Data, Dataset
from pyro_vae.engine.course import divergence, overfitting
from pyro_vae.engine.data import OBSERVATION_SEED, in_chunks, observe_once
from pyro_vae.engine.defaults import resolve_device
from pyro_vae.engine.observations import Dequantize, Observation
from pyro_vae.engine.optimizers import adam
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.weights import load_weights
from pyro_vae.evaluation.verdict import beyond_storage
from pyro_vae.files import replace_file
from pyro_vae.fitting import Fit, fit_as_set
from pyro_vae.inference import Probe, Program
from pyro_vae.report import page

__all__ = [
    "Run",
    "evaluate",
    "load",
    "open_run",
    "provenance",
    "store_results",
    "train",
    "write_report",
]

_OF_LEVELS = {
    "Binarize": "integers, or values in [0, 1]",
    "Dequantize": "integers",
    "Rescale": "integers",
}
_SEEN_ROWS = 10_000
_COMPARED_ROWS = 1_000  # each with each


@dataclass(frozen=True)
class Run:
    """What a configuration stands for.

    Attributes:
        config: The values of the options.
        objects: The objects that they stand for, by role.
        data: The data set.
        observation: How its rows become observations.
        program: An object with ``model`` and ``guide``.
        device: Where it runs.
        record: What the run keeps of the data that it was trained on; None before it does.
    """

    config: Any
    objects: Any
    data: Dataset
    observation: Observation
    program: Any
    device: torch.device
    record: DataRecord | None = None

    @cached_property
    def on_other_data(self) -> bool:
        """Whether the data are others than those that the run was trained on."""
        return self.record is not None and self.data.fingerprint() != self.record.fingerprint

    @property
    def num_trained_on(self) -> int:
        """How many of the test rows the run was trained on."""
        return 0 if self.record is None else self.record.num_trained_on(self.data.test.x)

    @cached_property
    def bound(self) -> Program:
        """The program on the fields of the data, which says those that it takes."""
        program = Program(self.program.model, self.program.guide)
        return program.on(self.data.train.names)

    def rows_like(self, label: str | None) -> Data:
        """Return a few rows, for their shape, with the labels to sample in turn.

        Args:
            label: Classes by name or number; all that occur unless given.
        """
        rows = self.test_rows()
        if self.record is None or "labels" not in self.bound.fields:
            if label is not None:
                raise ValueError(f"--label {label}: the run's program takes no labels")
            return rows
        chosen = self.record.labels_to_sample(label)
        if chosen is None:
            return rows
        some = rows[torch.arange(len(chosen)) % len(rows)]
        return some.replace(labels=chosen.to(self.device))

    def test_rows(self) -> Data:
        """Return the test data, observed once."""
        return self._observed(self.data.test, OBSERVATION_SEED + 2)

    def arguments(self, rows: Data) -> tuple[Tensor, ...]:
        """Return what the bound program is called with for some rows."""
        return rows.tensors(self.bound.fields)

    def training_rows(self, num_rows: int) -> Data:
        """Return the first training rows, observed once."""
        return self._observed(self.data.train[:num_rows], OBSERVATION_SEED + 3)

    def _observed(self, data: Data, seed: int) -> Data:
        return observe_once(data, self.observation, seed=seed, device=self.device)


def open_run(config: Any, data: Dataset, record: DataRecord | None = None) -> Run:
    """Build what a configuration stands for.

    Args:
        config: The values of the options.
        data: The data set that it names, or that a trained run is evaluated on.
        record: What a trained run keeps of its data.
    """
    device = resolve_device(config.device)
    objects = components_built(config)
    observation = objects.observation(_levels(config, data))
    num_particles = getattr(getattr(objects, "objective", None), "num_particles", 1)
    if num_particles < 1:
        raise ValueError(f"--objective.num_particles {num_particles}: give 1 or more")
    torch.manual_seed(config.seed)
    seen = record.stand_in() if record is not None and record.opens_alone else data
    with naming_options(config), Budget(most_operations=MOST_OPERATIONS):
        program = build_program(config, objects, seen, observation)
    return Run(config, objects, data, observation, program, device, record)


def keep_data(run: Run, out: Path, options: str) -> None:
    """Store what a run keeps of its data, and its options, in its folder, unless they are there."""
    if data_record.read(out) is not None:
        return
    record = data_record.record_of(run.data, run.config.data, out, options)
    few = run._observed(record.few, OBSERVATION_SEED)
    with torch.random.fork_rng():
        rebuilt = build_program(run.config, run.objects, record.stand_in(), run.observation)
        alone = data_record.rebuilds_alike(run.program.to(run.device), rebuilt.to(run.device), few)
    data_record.write(replace(record, opens_alone=alone), out)


def _levels(config: Any, data: Dataset) -> int | None:
    """Return the levels for the observation; values in [0, 1] are probabilities of Binarize."""
    name = config.observation.name
    if data.levels is not None or name not in _OF_LEVELS:
        return data.levels
    low, high = float(data.train.x.min()), float(data.train.x.max())
    if name == "Binarize" and low >= 0 and high <= 1:
        return 1
    raise ValueError(
        f"--observation {name}: {data.name} holds real values from {low:g} to {high:g}, and "
        f"{name} takes {_OF_LEVELS[name]}; take them as they are, --observation AsFloat"
    )


def train(run: Run, *, out: Path, resume: bool) -> Fit:
    """Fit the run's program on its data, into the folder ``out``."""
    config = run.config
    settings = Settings(
        objective=run.objects.objective,
        optim=_adam(config.lr), schedule=run.objects.schedule, observation=run.observation,
        epochs=config.epochs, batch_size=config.batch_size, clip_norm=config.clip_norm,
        patience=config.patience, engine=config.engine, precision=config.precision,
        device=run.device, seed=config.seed, out=out, resume=resume, progress=True,
        log_tensorboard=config.tensorboard, turns=run.objects.turns, weights=config.weights,
        init_from=config.init_from,
    )  # fmt: skip
    return fit_as_set(run.program, with_weights(config, run.data), settings)


def _adam(learning_rate: float) -> Callable[..., torch.optim.Optimizer]:
    if not (0 < learning_rate < math.inf):
        raise ValueError(f"--lr {learning_rate}: the learning rate is positive and finite")
    return lambda parameters: adam(parameters, lr=learning_rate)


def load(run: Run, folder: Path, *, weights: str) -> Fit:
    """Load the best or the last weights of a run folder into the run's program."""
    run.program.to(run.device)
    few = run.arguments(run.test_rows()[:3])
    done = load_weights(run.bound.model, run.bound.guide, folder, *few, weights=weights)
    counts = (done["epoch"], done["step"], done["seconds"], done["best_epoch"])
    return Fit(done["history"], *counts, weights=done["weights"], start=done["start"],
               init_from=done["init_from"])  # fmt: skip


def evaluate(run: Run, done: Fit, *, num_samples: int) -> dict[str, Any]:
    """Return the numbers of the run on its test data, nats per datum, as a plain record."""
    rows = run.test_rows()
    program = Probe(run.bound, *run.arguments(rows))
    bound = evaluation.elbo(program, rows)
    estimate = optional("log p(x)", lambda: _estimate(program, rows, num_samples))
    activity = optional("the activity of units", lambda: evaluation.unit_activity(program, rows))
    information = optional("the mutual information", lambda: _information(run))
    bits_per_dim = optional("bits per dimension", lambda: _bits_per_dim(run, bound))
    return {
        "test_elbo_nats": bound.elbo_nats.value,
        "test_elbo_standard_error": bound.elbo_nats.standard_error,
        **_sampled(estimate, num_samples),
        "test_rate_nats": bound.rate_nats.value,
        "test_distortion_nats": bound.distortion_nats.value,
        **_by_site(bound),
        "bits_per_dim": bits_per_dim,
        **_units(activity),
        **_information_record(information),
        "probe_accuracy": optional("the linear probe", lambda: _probe_accuracy(run)),
        "num_parameters": _num_parameters(run),
        "epochs": done.epochs,
        "steps": done.steps,
        "seconds": done.seconds,
        "weights": done.weights,
        "judged_epoch": done.judged_epoch,
        **({} if done.init_from is None else {"init_from": done.init_from}),
        "num_test": len(rows),
        **({"num_trained_on": run.num_trained_on} if run.on_other_data else {}),
        "classes": run.data.classes,
        "verdict": [
            *_course(done),
            *(
                []  # a program that has diverged says nothing of its components
                if diverged(done)
                else [
                    *beyond_storage(bits_per_dim, run.data.levels),
                    *evaluation.verdict(activity or {}, bound.kl_nats, information),
                ]
            ),
        ],
    }


def diverged(done: Fit) -> bool:
    """Whether training went wrong to its end, so that the last weights are of no use."""
    wrong = divergence(done.history, done.start)
    return wrong is not None and not wrong.came_back


def _estimate(program: Probe, rows: Data, num_samples: int) -> evaluation.ImportanceEstimate:
    return evaluation.importance_sampling(
        program, rows, num_samples=num_samples, progress=sys.stderr.isatty()
    )


def _sampled(estimate: evaluation.ImportanceEstimate | None, num_samples: int) -> dict[str, Any]:
    if estimate is None:
        return {}
    return {
        "test_log_likelihood_nats": estimate.mean.value,
        "test_log_likelihood_standard_error": estimate.mean.standard_error,
        "num_importance_samples": num_samples,
        "effective_sample_size": float(estimate.effective_sample_size.median()),
    }


def _course(done: Fit) -> list[str]:
    """Say where training went wrong or too far, and which weights are evaluated."""
    said = divergence(done.history, done.start) or overfitting(done.history)
    if said is None:
        return []
    judged = f"the {done.weights} weights, of epoch {done.judged_epoch}, are evaluated"
    other = "; --weights best evaluates the best" if done.weights == "last" else ""
    return [f"{said}; {judged}{other}"]


def _by_site(bound: evaluation.Bound) -> dict[str, Any]:
    """Return the distortion of each observed site, where there are several."""
    by_site = {name: nats.value for name, nats in bound.site_distortion_nats.items()}
    return {"test_site_distortion_nats": by_site} if len(by_site) > 1 else {}


def _units(activity: dict[str, evaluation.UnitActivity] | None) -> dict[str, Any]:
    if activity is None:
        return {"active_units": None}
    return {
        "active_units": sum(site.num_active for site in activity.values()),
        "num_units": sum(site.activity.numel() for site in activity.values()),
    }


def _information(run: Run) -> evaluation.Information | None:
    """Return what the latents tell of the first test data; None if a flow has no inverse."""
    try:
        return evaluation.mutual_information(run.program, run.test_rows()[:_COMPARED_ROWS])
    except ValueError:
        return None


def _information_record(found: evaluation.Information | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "mutual_information_nats": found.nats.value,
        "mutual_information_ceiling": found.ceiling,
        "aggregate_kl_nats": found.aggregate_kl.value,
    }


def _num_parameters(run: Run) -> int:
    # Functions hold no parameters: theirs are in modules that they refer to, or in Pyro's store.
    program = Program(run.program.model, run.program.guide)
    found: list[Tensor] = []
    found += [p for module in program.reachable for p in module.parameters() if p.requires_grad]
    found += program.stored_parameters().values()
    return sum(parameter.numel() for parameter in {id(p): p for p in found}.values())


def _bits_per_dim(run: Run, bound: evaluation.Bound) -> float | None:
    """Bits per dimension of the stored integers; None for data that have no such unit.

    Those are real numbers, densities of integers that were not dequantised, bags and sequences,
    data of which numbers are missing, and what a program makes of its data before it observes it.
    """
    support = observed_support(run.bound, run.test_rows()[:3])
    numbers = single_numbers(support)
    if run.data.levels is None or numbers is None or _has_missing(run):
        return None
    if numbers.is_discrete:
        return bound.bits_per_dim
    if isinstance(run.observation, Dequantize):
        return bound.bits_per_dim + math.log2(run.data.levels + 1)
    return None


def _has_missing(run: Run) -> bool:
    return any(bool(x.isnan().any()) for x in in_chunks(run.data.test.x))


def _probe_accuracy(run: Run) -> float | None:
    train, test = run.training_rows(_SEEN_ROWS), run.test_rows()
    if train.labels is None or test.labels is None or "labels" in run.bound.fields:
        return None
    train, test = (rows[rows.labelled.nonzero().flatten().cpu()] for rows in (train, test))
    if len(train.labels.unique()) < 2 or not len(test):
        return None
    means = [
        torch.cat([m.flatten(1) for m in evaluation.posterior_means(run.program, r).values()], 1)
        for r in (train, test)
    ]
    return evaluation.linear_probe(means[0], train.labels, means[1], test.labels)


def store_results(results: dict[str, Any], out: Path) -> None:
    """Write ``results.json`` into the run folder; numbers that are not finite are null."""
    text = json.dumps(_finite(results), indent=2)
    replace_file(out / "results.json", f"{text}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    run: Run,
    done: Fit,
    results: dict[str, Any],
    pictures: list[tuple[str, Path | str]],
    out: Path,
    config: str,
) -> None:
    """Write ``report.html`` into the run folder."""
    page.write_report(
        out / "report.html",
        title=f"{type(run.program).__name__} on {run.data.name}",
        results=results,
        history=done.history,
        pictures=pictures,
        config=_without_folders(config),
        provenance=provenance(run, f"pyro-vae train --config {out / 'config.yaml'}"),
    )


def provenance(run: Run, command: str) -> dict[str, Any]:
    """Return what a report's numbers come from: the command that repeats them, and versions."""
    return {
        "command": command,
        "seed": run.config.seed,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _without_folders(config: str) -> str:
    """Leave the folders of files out: a report is passed on, and they are its author's own."""
    return re.sub(r"^(\w+: ['\"]?)/.*/", r"\1", config, flags=re.MULTILINE)
