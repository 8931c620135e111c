"""A run: build data, program and objective from a configuration; train, evaluate, report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.budget import Budget
from pyro_vae.cli import data_record
from pyro_vae.cli.components import Component
from pyro_vae.cli.costs import MOST_OPERATIONS, naming_options
from pyro_vae.cli.data_loading import with_weights
from pyro_vae.cli.data_record import DataRecord
from pyro_vae.cli.observed_sites import drawn_by_symbol
from pyro_vae.cli.parser import components_built
from pyro_vae.cli.programs import build_program
from pyro_vae.components import MaskingNoise
from pyro_vae.datasets import Data, Dataset
from pyro_vae.distributions.drawing import DrawingRule
from pyro_vae.engine import costs
from pyro_vae.engine.course import divergence
from pyro_vae.engine.data import OBSERVATION_SEED, in_chunks, observe_once
from pyro_vae.engine.defaults import BATCH_SIZE, resolve_device
from pyro_vae.engine.observations import Observation
from pyro_vae.engine.optimizers import adam
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.weights import load_weights
from pyro_vae.evaluation import Drawing
from pyro_vae.evaluation.drawing import Likeliest
from pyro_vae.fitting import Fit, fit_as_set
from pyro_vae.inference import Corrupted, CorruptedInputs, Probe, Program
from pyro_vae.inference.advice import range_of
from pyro_vae.wording import option

__all__ = ["Run", "diverged", "load", "open_run", "settings_of", "train"]

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

    @cached_property
    def typical_model(self) -> Callable[..., Any]:
        """The model to ask for means; of texts and categories, it has the likeliest ones."""
        if self.data.table is not None:
            return Likeliest()(self.program.model)
        if self.data.vocabulary is None:
            return self.program.model
        sites = drawn_by_symbol(self.bound, self.test_rows()[:3])
        return Drawing(temperature=0.0, sites=sites)(self.program.model)

    def drawing_model(
        self, temperature: float, nucleus: float, *, mean: bool
    ) -> Callable[..., Any]:
        """Return the model to draw from by a rule, or to ask for means.

        Raises:
            ValueError: If a number is out of range, means are asked for beside it, or no site is
                drawn symbol by symbol.
        """
        rule = DrawingRule(temperature, nucleus)
        if rule == DrawingRule():
            return self.typical_model if mean else self.program.model
        given = {"temperature": temperature, "nucleus": nucleus}
        said = ", ".join(option(name, f"{value:g}") for name, value in given.items() if value != 1)
        if mean:
            raise ValueError(f"{said}: means are not drawn; ask for draws, or leave it out")
        sites = drawn_by_symbol(self.bound, self.test_rows()[:3])
        if not sites:
            raise ValueError(
                f"{said}: no site of the program is drawn symbol by symbol; leave it out"
            )
        return Drawing(temperature, nucleus, sites=sites)(self.program.model)

    @cached_property
    def guesses_classes(self) -> bool:
        """Whether the program is given some labels and guesses the others.

        It is validated and tested without labels, which are there to compare its guesses with.
        """
        if "labelled" not in self.bound.fields:
            return False
        for module in self.bound.reachable:
            module.to(self.device)
        few = self._observed(self.data.test[:3], OBSERVATION_SEED + 2)
        try:
            return bool(Probe(self.bound, *self.arguments(few)).layout.strata.sites)
        except ValueError:
            return False  # what is wrong with it is said when it is trained

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
        """Return the test data, observed once; without labels where the program guesses them."""
        rows = self._observed(self.data.test, OBSERVATION_SEED + 2)
        return unlabelled(rows) if self.guesses_classes else rows

    def arguments(self, rows: Data) -> tuple[Tensor, ...]:
        """Return what the bound program is called with for some rows."""
        return rows.tensors(self.bound.fields)

    def training_rows(self, num_rows: int) -> Data:
        """Return the first training rows, observed once."""
        return self._observed(self.data.train[:num_rows], OBSERVATION_SEED + 3)

    def _observed(self, data: Data, seed: int) -> Data:
        return observe_once(data, self.observation, seed=seed, device=self.device)


def unlabelled(part: Data) -> Data:
    """Return rows of which none has a label."""
    return part.replace(labels=torch.full_like(part.labels, -1))


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
    with naming_options(config), Budget(most_operations=MOST_OPERATIONS, copies=4):
        program = build_program(config, objects, seen, observation)
    return Run(config, objects, data, observation, program, device, record)


def foresee(run: Run) -> None:
    """Refuse a program whose step memory or a lifetime cannot hold, before it is run."""
    few = run.training_rows(3)
    with naming_options(run.config):
        batch_size = run.config.batch_size or min(BATCH_SIZE, len(run.data.train))
        particles = getattr(run.objects.objective, "num_particles", 1)
        costs.foresee(run.bound, run.arguments(few), batch_size, particles)


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
    if data.words is not None:
        return None  # counts have no largest one
    if data.levels is not None or name not in _OF_LEVELS:
        return data.levels
    low, high, *_ = range_of(in_chunks(data.train.x))
    if name == "Binarize" and low >= 0 and high <= 1:
        return 1
    raise ValueError(
        f"--observation {name}: {data.name} holds real values from {low:g} to {high:g}, and "
        f"{name} takes {_OF_LEVELS[name]}; take them as they are, --observation AsFloat"
    )


def train(run: Run, *, out: Path, resume: bool) -> Fit:
    """Fit the run's program on its data, into the folder ``out``."""
    data = with_weights(run.config, run.data)
    return fit_as_set(_in_training(run), data, settings_of(run, out=out, resume=resume))


def _in_training(run: Run) -> Any:
    """Return the program with the noise that it is trained with, if any."""
    model, guide = run.program.model, run.program.guide
    noise, share = run.objects.corruption, getattr(run.config, "word_dropout", None)
    if share is None and noise is None:
        return run.program
    if share is not None:
        model = CorruptedInputs(_word_dropout(share, run.config.likelihood))(model)
    return model, guide if noise is None else Corrupted(noise)(guide)


def _word_dropout(share: float, likelihood: Any) -> MaskingNoise:
    """Return the noise of ``--word-dropout``: padding, which the decoder is not fed with else."""
    known = likelihood.all_arguments() if isinstance(likelihood, Component) else {}
    if "padding" not in known:
        raise ValueError(
            f"--word-dropout {share:g}: it hides symbols from the likelihood that reads them, "
            "--likelihood AutoregressiveSequence"
        )
    return MaskingNoise(share, value=known["padding"])


def settings_of(run: Run, *, out: Path, resume: bool) -> Settings:
    """Return how a run is trained, into the folder ``out``."""
    config = run.config
    return Settings(
        objective=run.objects.objective,
        optim=_adam(config.lr, config.momentum), schedule=run.objects.schedule,
        observation=run.observation,
        epochs=config.epochs, batch_size=config.batch_size,
        labelled_share=config.labelled_share, clip_norm=config.clip_norm,
        patience=config.patience, engine=config.engine, precision=config.precision,
        device=run.device, seed=config.seed, out=out, resume=resume, progress=True,
        log_tensorboard=config.tensorboard, turns=run.objects.turns, weights=config.weights,
        init_from=config.init_from,
    )  # fmt: skip


def _adam(learning_rate: float, momentum: float = 0.9) -> Callable[..., torch.optim.Optimizer]:
    if not (0 < learning_rate < math.inf):
        raise ValueError(f"--lr {learning_rate}: the learning rate is positive and finite")
    return lambda parameters: adam(parameters, lr=learning_rate, momentum=momentum)


def load(run: Run, folder: Path, *, weights: str) -> Fit:
    """Load the best or the last weights of a run folder into the run's program."""
    run.program.to(run.device)
    rows = run.test_rows()
    # Three whatever there are: a batch norm is looked at as in training, on two rows or more.
    few = run.arguments(rows[torch.arange(3, device=rows.x.device) % len(rows)])
    done = load_weights(run.bound.model, run.bound.guide, folder, *few, weights=weights)
    counts = (done["epoch"], done["step"], done["seconds"], done["best_epoch"])
    return Fit(done["history"], *counts, weights=done["weights"], start=done["start"],
               init_from=done["init_from"])  # fmt: skip


def diverged(done: Fit) -> bool:
    """Whether training went wrong to its end, so that the last weights are of no use."""
    wrong = divergence(done.history, done.start)
    return wrong is not None and not wrong.came_back
