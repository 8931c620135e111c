"""``fit``: train a program, or several of one structure, on data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_vae.arguments import at_the_door
from pyro_vae.arithmetic import reduced_precision, suited_arithmetic
from pyro_vae.datasets import Dataset, as_dataset
from pyro_vae.engine.callbacks import Callback
from pyro_vae.engine.course import divergence
from pyro_vae.engine.data import observe_once
from pyro_vae.engine.defaults import resolve_device, with_channel
from pyro_vae.engine.given import Given, program_and_data
from pyro_vae.engine.loop import train
from pyro_vae.engine.observations import AsFloat, Observation
from pyro_vae.engine.optimizers import Optim, adam
from pyro_vae.engine.restoring import own_random_state, seed_everything
from pyro_vae.engine.run_folder import lock
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.taken import warn_of_unused
from pyro_vae.engine.training import Training
from pyro_vae.engine.turns import Turns
from pyro_vae.engine.weights import start_from
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.program import exclusively
from pyro_vae.inference.schedules import Cosine
from pyro_vae.replicas.replication import replicated
from pyro_vae.replicas.runs import Replicas
from pyro_vae.signals import Interrupted, answered
from pyro_vae.wording import warn

__all__ = ["Fit", "Interrupted", "Replica", "fit", "fit_as_set"]


@dataclass(frozen=True)
class Replica:
    """What a finished run did to one of several programs.

    Attributes:
        program: The trained object; a pair of model and guide where they were given apart.
        history: One record per epoch, of means per datum; each name ends with the unit.
        epochs: The number of epochs run.
        steps: The number of gradient steps taken.
        seconds: Time spent training all replicas, over all resumptions.
        best_epoch: The epoch whose validation value, the ELBO of bounds, was the largest.
        seed: Of its permutations and noise.
        weights: Which weights the program has: the "best" by validation or the "last".
    """

    program: Any
    history: list[dict[str, Any]]
    epochs: int
    steps: int
    seconds: float
    best_epoch: int
    seed: int
    weights: str


@dataclass(frozen=True)
class Fit:
    """What a finished run did.

    Attributes:
        history: One record per epoch, of means per datum; each name ends with the unit.
        epochs: The number of epochs run.
        steps: The number of gradient steps taken.
        seconds: Time spent training, over all resumptions.
        best_epoch: The epoch whose validation value, the ELBO of bounds, was the largest.
        replicas: The same for each program that was trained; all else is the first's.
        weights: Which weights the program has: the "best" by validation or the "last".
        start: ``validation_*_nats`` before the first step.
        init_from: The weights that it started from, of another run.
    """

    history: list[dict[str, Any]]
    epochs: int
    steps: int
    seconds: float
    best_epoch: int
    replicas: list[Replica] = field(default_factory=list)
    weights: str = "last"
    start: dict[str, float] = field(default_factory=dict)
    init_from: str | None = None

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        found = [name for name in last if name.startswith("train_")][:1]
        found += [name for name in last if name.startswith("validation_")][:1]
        bounds = "".join(f", {name}={last[name]:.2f}" for name in found)
        several = f", {len(self.replicas)} replicas" if len(self.replicas) > 1 else ""
        return (
            f"Fit({self.epochs} epochs, {self.steps:,} steps, {self.seconds:.1f} s{bounds}, "
            f"best_epoch={self.best_epoch}, weights={self.weights!r}{several})"
        )

    @property
    def evaluated_epoch(self) -> int:
        """The epoch after which the program had the weights that it has."""
        return self.best_epoch if self.weights == "best" else self.epochs


@at_the_door
@exclusively
def fit(
    model: Any,
    guide: Any,
    data: Any = None,
    *,
    data_weights: Any = None,
    objective: ELBO | None = None,
    optim: Optim = adam,
    schedule: Callable[[float], float] | None = None,
    observation: Observation | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    labelled_share: float | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    weights: str = "best",
    device: str | torch.device = "auto",
    seed: int = 0,
    out: Path | str | None = None,
    init_from: Path | str | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: bool | None = None,
    log_tensorboard: bool = False,
    engine: str = "auto",
    fast: bool = True,
    precision: str = "float32",
    num_replicas: int = 1,
    turns: Turns | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Train a program on data: ``fit(vae, data)`` or ``fit(model, guide, data)``.

    ``fit(vae, data, num_replicas=R)`` and ``fit([vae_1, ..., vae_R], data)`` train several
    programs of one structure as one graph; each comes out as from a run of its own, up to rounding.

    Before the first step, the conditionals of a new program are initialised from the training data:
    inputs of encoders are standardised, and likelihoods take the units of the data and start at
    their means. Those of a program that was trained, given weights or initialised before are left
    as they are, and so are modules of the user's own.

    Args:
        model: An object with methods ``model`` and ``guide``, or a list of such; or the model
            alone.
        guide: The guide; left out where the first argument has both.
        data: A ``Dataset``, or what ``datasets.from_arrays`` takes: an array, a pair of array and
            labels, fields by name ``{"x": x, "covariates": c}``, a data set of torch... The
            arguments of model and guide name the fields that they take. Rows of any shape stay as
            they are; images ``(N, H, W)`` have one channel to a program whose families do.
        data_weights: What each row counts in training, ``[N]`` numbers of 0 or more; of a
            ``Dataset`` one for each training row. What is measured on validation and test rows is
            an unweighted mean, and so is the bound that an objective of ours reports.
        objective: Any Pyro ELBO; unless given ``Trace_ELBO()``, or ``TraceMeanField_ELBO()``,
            which has the same expectation, where the KL of the one latent has a closed form.
        optim: Builds a torch optimiser from parameters; Adam at 1e-3 unless given.
        schedule: The factor of the learning rate; half a cosine wave to zero unless given.
        observation: How stored rows become observations; as they are, unless given.
        epochs: Passes over the training data; 0 trains nothing.
        batch_size: Data per step; 128, or all training rows where they are fewer, unless given. The
            last batch of an epoch may be smaller; a single row left over joins the batch before
            it where the program cannot be trained on one, as with batch normalisation.
        labelled_share: The part of each batch whose rows have a label, where some have none (-1),
            as in a semi-supervised program; as it comes unless given. An epoch then goes through
            the larger part once, and through the other again and again.
        clip_norm: The largest gradient norm of the loss per datum.
        patience: Stop after so many epochs without a better validation ELBO.
        weights: Which the program has afterwards: the "best" by validation, since test data are
            held out from that choice, or the "last". A checkpoint holds both.
        device: "auto" takes CUDA, then Apple's MPS, then the CPU.
        seed: Of permutations and noise. The global random state is left as it was.
        out: A folder for checkpoints and ``metrics.jsonl``; nothing is written unless given.
        init_from: The folder of a run whose best weights this one starts from; its tensors must fit
            the program's, all of them. It plays no part once there is a checkpoint to resume.
        resume: Go on from the checkpoint in ``out``, to the same bits.
        checkpoint_seconds: The least time between checkpoints.
        progress: Show a progress bar; None: where a person watches, on a terminal or in a notebook.
        log_tensorboard: Write TensorBoard scalars to ``out/tensorboard``.
        engine: How a step is run: "eager", "recorded" (the same bits, without Pyro's overhead),
            "compiled", or "auto"; see ``SVI``.
        fast: On a CPU, take the fastest products that are true float32, and one thread where
            the products are small; see ``suited_arithmetic``.
        precision: Of the networks' products: "float32", "tf32" on CUDA, or "bfloat16". Densities
            are float32 in any case.
        num_replicas: Train the program and so many copies less one, from the same weights, under
            the seeds ``seed``, ``seed + 1``, ...; the programs of a list take these seeds, too.
            Several have folders ``out/replica-0``, ``out/replica-1``, ...
        turns: Which steps move the guide's parameters, and which the model's, such as
            ``Aggressive()``; every step moves all, unless given.
        callbacks: What else is done at the start, after each step and epoch, and at the end; see
            ``Callback``.

    Raises:
        ValueError: If an argument is unusable or the data do not fit the likelihood.
        ProgramError: If the program breaks the convention.
        TrainingError: If a loss is not finite.
        Interrupted: If SIGINT or SIGTERM came; the checkpoint is written.
    """
    program, data = program_and_data(model, guide, data)
    settings = Settings(
        objective=objective, optim=optim, schedule=schedule or Cosine(),
        observation=observation or AsFloat(), epochs=epochs, batch_size=batch_size,
        labelled_share=labelled_share, clip_norm=clip_norm, patience=patience, weights=weights,
        device=device, seed=seed,
        out=None if out is None else Path(out), init_from=init_from, resume=resume,
        checkpoint_seconds=checkpoint_seconds, progress=progress, log_tensorboard=log_tensorboard,
        engine=engine, fast=fast, precision=precision, turns=turns, callbacks=callbacks,
    )  # fmt: skip
    data = as_dataset(data, weights=data_weights)
    return fit_as_set(program, data, settings, num_replicas=num_replicas)


@exclusively
def fit_as_set(program: Any, data: Dataset, settings: Settings, *, num_replicas: int = 1) -> Fit:
    """Train a program, a pair of model and guide, or a list of these, as settings say.

    Args:
        program: An object with methods ``model`` and ``guide``, a pair, or a list of such.
        data: To be trained and validated on.
        settings: All that ``fit`` takes by name.
        num_replicas: See ``fit``.

    Raises:
        ValueError, ProgramError, TrainingError, Interrupted: As ``fit`` does.
    """
    given = [Given(each) for each in (program if isinstance(program, list) else [program])]
    data = with_channel(given[0].pair, data)
    warn_of_unused([each.pair for each in given], data)
    device = resolve_device(settings.device)
    _materialize(given, data, settings.observation, device)
    if len(given) > 1 or num_replicas != 1:
        given = replicated(program, settings.objective, num_replicas)
    with (
        reduced_precision(settings.precision, device),
        own_random_state(device),
        answered(at_once=False) as stop,
        _locked(settings.out) as locked,
    ):

        def start(each: Given, own: Settings) -> Training:
            locked(own.out)
            with explaining("the program cannot be trained", each.pair.reachable):
                return Training(each.pair, data, own)

        began = None
        if settings.init_from is not None and not (settings.resume and _has_checkpoint(settings)):
            began = _begun(given, settings.init_from, settings.observation, data, device)
        with _started(start, given, settings) as (runs, members), _fastest(members[0]):
            for run in members:
                run.progress.init_from = began
            stop.farewell = lambda: f"a step went on for too long: {runs.goodbye()}"
            if settings.resume:
                runs.restore()
            runs.begin()
            train(runs, members[0], stop)
            done = [_taken(*each, members[0]) for each in zip(given, members, strict=True)]
    return _finished(members[0], done)


@contextmanager
def _started(
    start: Callable[[Given, Settings], Training], given: list[Given], settings: Settings
) -> Iterator[tuple[Training | Replicas, list[Training]]]:
    """Build the runs: one as it is, several in step; return them and their members."""
    if len(given) > 1:
        with closing(Replicas(start, given, settings)) as several:
            yield several, several.runs
    else:
        seed_everything(settings.seed)
        run = start(given[0], replace(settings, turns=copy.deepcopy(settings.turns)))
        yield run, [run]


def _taken(given: Given, run: Training, first: Training) -> Replica:
    """Leave the weights that are asked for in a program; say what was done to it."""
    done, weights = run.progress, run.take(run.settings.weights)
    counts = (done.history, done.epoch, done.step, first.progress.seconds, done.best_epoch)
    return Replica(given.program, *counts, run.seed, weights)


def _finished(first: Training, replicas: list[Replica]) -> Fit:
    done = first.progress
    counts = (done.epoch, done.step, done.seconds, done.best_epoch)
    wrong = divergence(done.history, done.start)
    if wrong is not None and not wrong.came_back:
        warn(str(wrong))
    return Fit(done.history, *counts, replicas, replicas[0].weights, done.start, done.init_from)


def _fastest(run: Training) -> AbstractContextManager[Any]:
    """Return the context of the fastest arithmetic for a run's steps, if that is asked for."""
    if not run.settings.fast or run.device.type != "cpu":
        return nullcontext()
    return suited_arithmetic(run.largest_product, run.settings.precision)


def _begun(
    programs: list[Given],
    run: Path | str,
    observation: Observation,
    data: Dataset,
    device: torch.device,
) -> str:
    """Give programs the weights of another run; say which they are."""
    few = observe_once(data.train[:3], observation, seed=0, device=device)
    said = ""
    for each in programs:
        program = each.pair.on(few.names)
        for module in program.reachable:
            module.to(device)
        said = start_from(program.model, program.guide, run, *few.tensors(program.fields))
    return said


def _has_checkpoint(settings: Settings) -> bool:
    found = ("checkpoints/step-*", "replica-*/checkpoints/step-*")
    out = settings.out
    return out is not None and any(any(out.glob(pattern)) for pattern in found)


def _materialize(
    given: list[Given], data: Dataset, observation: Observation, device: torch.device
) -> None:
    """Let lazy modules take their shapes from the data, before parameters are counted or copied."""
    for each in given:
        program = each.pair.on(data.train.names)
        if program.is_lazy:
            for module in program.reachable:
                module.to(device)
            few = data.train[:3]
            few_args = few.replace(x=observation(few.x)).tensors(program.fields)
            program.materialize(*(arg.to(device) for arg in few_args))


@contextmanager
def _locked(folder: Path | None) -> Iterator[Callable[[Path | None], None]]:
    """Hold the run's folder, and those in it that are asked for, until the run ends."""
    with ExitStack() as stack:
        held: set[Path | None] = {None}

        def hold(folder: Path | None) -> None:
            if folder is not None and folder not in held:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(folder))
                held.add(folder)

        hold(folder)
        yield hold
