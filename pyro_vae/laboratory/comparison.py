"""Compare objectives from the same data, weights and seeds.

    found = compare(vae, data, objectives=[ELBO(), IWAE(16), DReG(16)])
    print(found.table())

Each objective's gradient is measured at the same weights, part-way through training; each is timed,
in turns with the others; each trains the program anew from the same first weights.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from tqdm import tqdm

from pyro_vae.arguments import at_the_door
from pyro_vae.datasets import Data, as_dataset
from pyro_vae.engine.adaptation import adapt_to_data
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once, representative
from pyro_vae.engine.defaults import (
    BATCH_SIZE,
    fitted_objective,
    resolve_device,
    with_channel,
)
from pyro_vae.engine.given import Given, program_and_data
from pyro_vae.engine.observations import AsFloat, Observation
from pyro_vae.engine.optimizers import Optim, adam
from pyro_vae.engine.svi import SVI
from pyro_vae.engine.taken import taking
from pyro_vae.engine.weights import meeting_all
from pyro_vae.evaluation.batching import batches, check_counts, double
from pyro_vae.evaluation.estimates import Estimate
from pyro_vae.evaluation.likelihood import elbo, importance_sampling
from pyro_vae.fitting import fit
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.refusals import check_bound, check_objective
from pyro_vae.inference.schedules import Constant
from pyro_vae.inference.wake_sleep import RWS
from pyro_vae.laboratory.comparison_record import (
    Comparison,
    PartOfGradient,
    Point,
    Row,
    named,
)
from pyro_vae.laboratory.gradients import Gradients, draw_gradients, own_bound
from pyro_vae.laboratory.snapshots import Snapshots, Weights, steps_of_a_curve

__all__ = ["compare"]

_NUM_GROUPS = 10  # of gradients
_NUM_PARTICLES = 10  # of the true ELBO on held-out data
_NUM_REFERENCE = 128  # of the gradient of log p(x)
_ROUNDS, _BLOCK = 15, 5
# The engine "auto" records after 30 steps, the others at once.
_UNTIMED = {"auto": 40}


@at_the_door
def compare(
    model: Any,
    guide: Any = None,
    data: Any = None,
    *,
    objectives: Sequence[ELBO] | Mapping[str, ELBO],
    optim: Optim = adam,
    observation: Observation | None = None,
    epochs: int = 20,
    warm_up_epochs: int = 3,
    batch_size: int | None = None,
    clip_norm: float | None = None,
    num_rows: int = 64,
    num_repeats: int = 200,
    num_samples: int = 200,
    device: str | torch.device = "auto",
    seed: int = 0,
    engine: str = "auto",
    progress: bool = False,
) -> Comparison:
    r"""Compare objectives: ``compare(vae, data, objectives=[...])``, or ``model, guide, data``.

    Gradients are measured on the same few training data, at the weights that ``warm_up_epochs``
    of the ELBO lead to. The reference of the bias is the gradient of the very bound that the
    objective reports, by as many draws of its own; for the model's gradient, also that of
    log p(x), by self-normalised importance sampling with 128 particles. Training starts from the
    first weights, with a constant learning rate, so that a curve may be read at any step. The
    program is left with the weights it came with.

    Args:
        model: An object with methods ``model`` and ``guide``, or the model alone.
        guide: The guide; left out where the first argument has both.
        data: A ``Dataset``, or an array ``[N, *event_shape]``, or a pair of array and labels.
        objectives: ELBOs of ours or of Pyro's; by name, or named after their arguments. The first
            is what the others are held against.
        optim: Builds a torch optimiser from parameters; Adam at 1e-3 unless given.
        observation: How stored rows become observations; as they are, unless given.
        epochs: Passes over the training data for each objective.
        warm_up_epochs: Passes before gradients are measured; 0 for the first weights.
        batch_size: Data per step; 128, or all training rows where they are fewer, unless given.
        clip_norm: The largest gradient norm of the loss per datum, in training.
        num_rows: On how many training data gradients are measured.
        num_repeats: How many gradients; a multiple of 10, or the next below.
        num_samples: Importance samples a datum for log p(x).
        device: "auto" takes CUDA, then Apple's MPS, then the CPU.
        seed: Of all noise; the same for every objective.
        engine: How a step is run, see ``SVI``.
        progress: Show a progress bar.

    Raises:
        ValueError: If there is no objective, two have one name, none can train the program, or
            another argument is unusable. One that cannot is a row that says why.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """
    by_name = named(objectives)
    counts = {"epochs": epochs, "num_rows": num_rows, "num_repeats": num_repeats}
    check_counts(**counts, num_samples=num_samples, batch_size=batch_size)
    if num_repeats < 2 * _NUM_GROUPS:
        raise ValueError(f"num_repeats={num_repeats}: at least {2 * _NUM_GROUPS} are needed")
    if data is None:
        program, data = program_and_data(model, guide, None)
        model, guide = Given(program).model, Given(program).guide
    setting = {"optim": optim, "batch_size": batch_size, "clip_norm": clip_norm, "engine": engine}
    laboratory = _Laboratory(model, guide, data, observation, device, seed, num_samples, setting)
    with laboratory.undisturbed():
        return laboratory.run(by_name, epochs, warm_up_epochs, num_rows, num_repeats, progress)


class _Laboratory:
    """The program, the data and the weights that all objectives have in common."""

    def __init__(
        self,
        model: Any,
        guide: Any,
        data: Any,
        observation: Observation | None,
        device: str | torch.device,
        seed: int,
        num_samples: int,
        setting: dict[str, Any],
    ) -> None:
        self.device = resolve_device(device)
        self.data = with_channel(Program(model, guide), as_dataset(data))
        self.program = taking(Program(model, guide), self.data)
        self.observation = observation or AsFloat()
        self.seed, self.num_samples, self.setting = seed, num_samples, setting
        if setting["batch_size"] is None:
            setting["batch_size"] = min(BATCH_SIZE, len(self.data.train))
        for module in self.program.reachable:
            module.to(self.device)
            module.train()
        self.test = self._rows(self.data.test, OBSERVATION_SEED + 2)
        self.probe = Probe(self.program, *self.test)
        self.layout = self.probe.layout
        self.weights = Weights(self.program, self._parameters())

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put weights, modes and random state back in the end."""
        first = self.weights.copy()
        modules = self.program.reachable
        states = [copy.deepcopy(module.state_dict()) for module in modules]
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Encountered NaN")
                yield
        finally:
            self.weights.load(first)
            for module, state in zip(modules, states, strict=True):
                module.load_state_dict(state)  # units that were met are tensors of their own

    def run(
        self,
        objectives: dict[str, ELBO],
        epochs: int,
        warm_up_epochs: int,
        num_rows: int,
        num_repeats: int,
        progress: bool,
    ) -> Comparison:
        """Measure, time and train; return the rows."""
        rows = {name: Row(name) for name in objectives}
        batch = self._rows(self.data.train[:num_rows], OBSERVATION_SEED + 3)
        self._meet_data()
        first = self.weights.copy()
        bar = tqdm(total=2 + 2 * len(rows), desc="comparing", disable=not progress, unit="stage")
        with bar:
            self._fit(None, warm_up_epochs)
            warm = self.weights.copy()
            bar.update()
            able = self._able(objectives, rows, batch)
            of_log_p = self._gradients(RWS(_NUM_REFERENCE), batch, max(30, num_repeats // 5), 1)
            for name in list(able):
                self.weights.load(warm)
                with _failing(rows, able, name):
                    changes = self._measure(able[name], batch, num_repeats, of_log_p)
                    rows[name] = _changed(rows[name], **changes)
                bar.update()
            _require_one(rows, able)
            times = self._timed(able, epochs, warm)
            bar.update()
            log_p = self._train(able, rows, times, epochs, first, bar)
        _require_one(rows, able)
        settings = self._settings(epochs, warm_up_epochs, batch, num_repeats, times)
        return Comparison(_against_first(rows, log_p, times), settings)

    def _meet_data(self) -> None:
        """Let a new program start at the data as in ``fit``, once for all objectives."""
        rows = representative(self.data.train, self.observation, device=self.device)
        adapt_to_data(self.probe, *rows.tensors(self.program.fields))

    def _rows(self, data: Data, seed: int) -> tuple[Tensor, ...]:
        seen = observe_once(data, self.observation, seed=seed, device=self.device)
        return seen.tensors(self.program.fields)

    def _parameters(self) -> list[Tensor]:
        svi = SVI(self.program.model, self.program.guide, adam, meeting_all)
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            svi.find_parameters(*(arg[:3] for arg in self.test))
        return list(svi.parameters.values())

    def _able(
        self, objectives: dict[str, ELBO], rows: dict[str, Row], batch: tuple[Tensor, ...]
    ) -> dict[str, ELBO]:
        """Return the objectives that can train the program; note of the others why not."""
        able = {}
        for name, objective in objectives.items():
            able[name] = fitted_objective(objective, self.layout, len(self.data.train))
            with _failing(rows, able, name):
                check_objective(able[name], self.probe)
                check_bound(able[name])
        _require_one(rows, able)
        return able

    def _gradients(
        self, objective: ELBO, batch: tuple[Tensor, ...], num_repeats: int, stream: int
    ) -> Gradients:
        model, guide = self.program.model, self.program.guide
        return draw_gradients(
            model, guide, copy.deepcopy(objective), *batch, num_repeats=num_repeats,
            num_groups=_NUM_GROUPS, seed=self.seed + stream, engine=self.setting["engine"],
        )  # fmt: skip

    def _measure(
        self, objective: ELBO, batch: tuple[Tensor, ...], num_repeats: int, of_log_p: Gradients
    ) -> dict[str, Any]:
        bound = own_bound(objective)
        found = self._gradients(objective, batch, num_repeats, 2)
        against = None if bound is None else self._gradients(bound, batch, num_repeats, 3)
        # Parameters of the objective's own come last, after all that the references have.
        parts = {part: _part(found, against, part) for part in ("model", "guide")}
        return {**parts, "model_from_log_p": _bias(found, of_log_p, "model")}

    def _timed(
        self, objectives: dict[str, ELBO], epochs: int, weights: list[Tensor]
    ) -> dict[str, list[float]]:
        """Return the seconds per step of each objective in each round, in turns."""
        self.weights.load(weights)
        batch = self._rows(self.data.train[: self.setting["batch_size"]], OBSERVATION_SEED + 3)
        steps = {
            name: SVI(
                self.program.model, self.program.guide, partial(adam, lr=0.0),
                copy.deepcopy(objective), engine=self.setting["engine"],
                num_steps=epochs * self._num_batches,
            )
            for name, objective in objectives.items()
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in steps}
        with pyro.validation_enabled(False):
            for svi in steps.values():
                _seconds(svi, batch, _UNTIMED.get(self.setting["engine"], 3))
            for _ in range(_ROUNDS):
                for name, svi in steps.items():
                    times[name].append(_seconds(svi, batch, _BLOCK) / _BLOCK)
        return times

    @property
    def _num_batches(self) -> int:
        return math.ceil(len(self.data.train) / self.setting["batch_size"])

    def _train(
        self,
        able: dict[str, ELBO],
        rows: dict[str, Row],
        times: dict[str, list[float]],
        epochs: int,
        first: list[Tensor],
        bar: Any,
    ) -> dict[str, dict[str, Tensor]]:
        """Train each objective and evaluate it along the way; return log p of each datum."""
        num_steps = epochs * self._num_batches
        seconds = {name: statistics.median(found) for name, found in times.items()}
        budget = num_steps * min(seconds.values())
        log_p: dict[str, dict[str, Tensor]] = {}
        for name in list(able):
            self.weights.load(first)
            equal = min(num_steps, max(1, int(budget / seconds[name] + 1e-9)))
            with _failing(rows, able, name):
                taken = self._fit(able[name], epochs, steps_of_a_curve(num_steps) | {equal})
                points, each = self._evaluated(taken, seconds[name])
                self.weights.load(taken[num_steps])
                rows[name] = _changed(
                    rows[name],
                    seconds_per_step=_median(times[name]),
                    bound_nats=self._bound(able[name]),
                    curve=list(points.values()),
                    at_equal_steps=points[num_steps],
                    at_equal_time=points[equal],
                )
                log_p[name] = {"at_equal_steps": each[num_steps], "at_equal_time": each[equal]}
            bar.update()
        return log_p

    def _fit(
        self, objective: ELBO | None, epochs: int, wanted: set[int] | None = None
    ) -> dict[int, list[Tensor]]:
        """Train from the present weights; return the weights after the steps that are wanted."""
        num_steps = epochs * self._num_batches
        snapshots = Snapshots(self.weights, wanted or set())
        setting = {**self.setting, "device": self.device, "seed": self.seed}
        fit(
            self.program.model, self.program.guide, self.data, objective=copy.deepcopy(objective),
            schedule=Constant(), callbacks=[snapshots], observation=self.observation, epochs=epochs,
            weights="last", **setting,
        )  # fmt: skip
        return {**snapshots.taken, num_steps: self.weights.copy()}

    def _evaluated(
        self, taken: dict[int, list[Tensor]], seconds: float
    ) -> tuple[dict[int, Point], dict[int, Tensor]]:
        points, each = {}, {}
        model, guide = self.program.model, self.program.guide
        for step in sorted(taken):
            self.weights.load(taken[step])
            bound = elbo(model, guide, *self.test, num_particles=_NUM_PARTICLES, seed=self.seed)
            found = importance_sampling(
                model, guide, *self.test, num_samples=self.num_samples, seed=self.seed,
                engine=self.setting["engine"],
            )  # fmt: skip
            points[step] = Point(
                step, step * seconds, bound.elbo_nats, found.mean,
                rate_nats=bound.rate_nats.value, distortion_nats=bound.distortion_nats.value,
            )  # fmt: skip
            each[step] = found.log_p
        return points, each

    def _bound(self, objective: ELBO) -> Estimate | None:
        """Return the bound that the objective reports on the test data."""
        if not isinstance(objective, Objective):
            return None
        with self.program.evaluating(seed=self.seed):
            values = [
                objective.value(objective.table(self.program, self.layout, *rows))
                for rows in batches(self.test, self.setting["batch_size"])
            ]
        return Estimate.of(double(torch.cat(values)))

    def _settings(
        self,
        epochs: int,
        warm_up_epochs: int,
        batch: tuple[Tensor, ...],
        num_repeats: int,
        times: dict[str, list[float]],
    ) -> dict[str, Any]:
        num_steps = epochs * self._num_batches
        num_repeats = num_repeats // _NUM_GROUPS * _NUM_GROUPS
        fastest = min(statistics.median(found) for found in times.values())
        return {
            "data": self.data.name, "num_test": len(self.test[0]), "num_steps": num_steps,
            "epochs": epochs, "warm_up_epochs": warm_up_epochs, "num_rows": len(batch[0]),
            "batch_size": self.setting["batch_size"], "num_repeats": num_repeats,
            "num_samples": self.num_samples, "seed": self.seed, "device": str(self.device),
            "threads": torch.get_num_threads(), "engine": self.setting["engine"],
            "snr_floor": math.sqrt(2 / (math.pi * num_repeats)),
            "equal_seconds": num_steps * fastest,
        }  # fmt: skip


@contextmanager
def _failing(rows: dict[str, Row], able: dict[str, ELBO], name: str) -> Iterator[None]:
    """Let an objective that cannot go on be a row that says why; the others do."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        del able[name]
        said = " ".join(str(error).split()) or type(error).__name__
        rows[name] = _changed(rows[name], failure=said)


def _require_one(rows: dict[str, Row], able: dict[str, ELBO]) -> None:
    if not able:
        name, row = next(iter(rows.items()))
        raise ValueError(f"no objective can train this program; {name}: {row.failure}")


def _changed(row: Row, **changes: Any) -> Row:
    return Row(**{**vars(row), **changes})


def _part(found: Gradients, against: Gradients | None, part: str) -> PartOfGradient:
    bias = None if against is None else _bias(found, against, part)
    own = found.of(part)
    return PartOfGradient(bias, own.snr(), own.total_variance())


def _bias(found: Gradients, against: Gradients, part: str) -> Estimate:
    return found.of(part).relative_bias(against.of(part))


def _seconds(svi: SVI, batch: tuple[Tensor, ...], num: int) -> float:
    start = time.perf_counter()
    for _ in range(num):
        loss = svi.update(*batch)
    float(loss[0] if isinstance(loss, tuple) else loss)  # here the host waits for the device
    return time.perf_counter() - start


def _median(values: list[float]) -> Estimate:
    """Return a median with its error by the median absolute deviation, as of a normal."""
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median([abs(value - middle) for value in values])
    return Estimate(middle, math.sqrt(math.pi / 2) * spread / math.sqrt(len(values)))


def _against_first(
    rows: dict[str, Row], log_p: dict[str, dict[str, Tensor]], times: dict[str, list[float]]
) -> list[Row]:
    """Hold those that were trained against the first of them."""
    base = next(iter(log_p))
    for name, found in log_p.items():
        ratios = [own / other for own, other in zip(times[name], times[base], strict=True)]
        changes: dict[str, Any] = {"time_ratio": _median(ratios)}
        for place, values in found.items():
            gain = Estimate.of(double(values) - double(log_p[base][place]))
            point = {**vars(getattr(rows[name], place)), "gain_nats": gain}
            changes[place] = Point(**point)
        rows[name] = _changed(rows[name], **changes)
    return list(rows.values())
