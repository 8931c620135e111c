"""What a run has before its first step: batches, an objective, an optimiser, all checked.

Whatever cannot work, or would give a wrong number, is refused here, before anything is trained.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.budget import Budget
from pyro_vae.datasets import Data, Dataset
from pyro_vae.engine.adaptation import adapt_to_data
from pyro_vae.engine.costs import check_step, foresee
from pyro_vae.engine.data import OBSERVATION_SEED, Batches, observe_once, representative
from pyro_vae.engine.defaults import (
    check_reported,
    default_objective,
    fitted_objective,
    resolve_device,
)
from pyro_vae.engine.description import constant_settings, program_settings, settings_of
from pyro_vae.engine.failure import rehearsing
from pyro_vae.engine.observations import Binarize, Dequantize, Rescale
from pyro_vae.engine.optimizers import check_constant_rate
from pyro_vae.engine.restoring import cuda_index
from pyro_vae.engine.resume_checks import described
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.single_rows import settle_single_rows
from pyro_vae.engine.step import Step
from pyro_vae.engine.taken import taking
from pyro_vae.engine.turns import part_in_turns
from pyro_vae.engine.updates import Updates
from pyro_vae.inference.corrupted import meet_data
from pyro_vae.inference.dependence import ignores_data
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program, ProgramError
from pyro_vae.inference.refusals import check_objective
from pyro_vae.inference.rows_apart import mixed_rows
from pyro_vae.inference.schedules import moving_in
from pyro_vae.inference.support import Part, check_support, observes_arguments
from pyro_vae.inference.weights import weighted
from pyro_vae.wording import warn

__all__ = ["Prepared"]

_CHECKED_ELEMENTS = 2**24


class Prepared:
    """The parts of a run of one program on one data set.

    Args:
        program: The model and the guide.
        data: To be trained and validated on.
        settings: Of the run.

    Attributes:
        program: The same, on the fields of the data that it takes.
        device: Where it is trained.
        batches: Of the training rows.
        validation: The validation rows, observed once, as the program takes them.
        probe: Of the program.
        layout: Of its sites.
        objective: What is maximised.
        moving: The numbers that schedules move.
        beside: The modules that are neither the model's nor the guide's, but belong to the run.
        step: The gradient step, which knows all parameters.
        largest_product: The multiplications of the step's largest product.
        unbounded: The parameters that are not finite from the start, and may stay so.
        shared: What a run that goes on has in common with the one that stopped.

    Raises:
        ValueError, ProgramError: As ``fit`` does.
    """

    def __init__(self, program: Program, data: Dataset, settings: Settings) -> None:
        self._settings, self._data = settings, data
        self.device = resolve_device(settings.device)
        self.program = _placed(taking(program, data), self.device)
        self._built = program_settings(self.program)
        self._trained = _with_weights(self.program, data.train)
        self._few = data.train[:3]
        self.batches = Batches(
            data.train, settings.observation, batch_size=settings.rows_of_a_batch(data),
            seed=settings.seed, device=self.device, fields=self._trained.fields,
            labelled_share=settings.labelled_share,
        )  # fmt: skip
        foresee(self.program, self._rows(self._few), self.batches.batch_size)
        self.validation = self._rows(data.validation, seed=OBSERVATION_SEED + 1)
        self._meet_data()
        self.probe = Probe(self.program, *self.validation)
        self.layout = self.probe.layout
        self._check_labels(data.train)
        for name in ("validation", "train", "test"):
            self._check_rows(name, data.parts[name])
        self.objective = self._checked_objective()
        self.step = self._step()
        self._find_parameters()
        self.unbounded = {
            name for name, p in self.step.parameters.items() if not bool(p.isfinite().all())
        }
        check_constant_rate(settings.optim, self._optimizer)
        self._warn_of_blind_guide()
        for number in self.moving:
            number.check(self.num_steps)
        self.shared = self._shared()

    @property
    def num_steps(self) -> int:
        """The number of steps of the whole run."""
        return self._settings.epochs * self.batches.num_batches

    def initialise_from_data(self) -> None:
        """Let the parts of the program start from the training data, such as scales from theirs."""
        with explaining("the program cannot be trained", self.program.reachable):
            if self._settings.epochs > 0:
                observation = self._settings.observation
                rows = representative(self._data.train, observation, device=self.device)
                adapt_to_data(self.probe, *rows.tensors(self.program.fields))
            mixed = mixed_rows(self.program, *self._rows(self._few))
        if mixed is not None:
            warn(mixed)

    # ------------------------------------------------------------------------------------ the data

    def _meet_data(self) -> None:
        """Give noises around the program the units of the data; a resumed run does the same."""
        if self.program.around:
            observation = self._settings.observation
            rows = representative(self._data.train, observation, device=self.device)
            meet_data(self.program, rows.x)

    def _rows(
        self, data: Data, seed: int | None = None, program: Program | None = None
    ) -> tuple[Tensor, ...]:
        """Return some rows, observed once, as a program takes them."""
        seed = self._settings.seed if seed is None else seed
        observed = observe_once(data, self._settings.observation, seed=seed, device=self.device)
        return observed.tensors((program or self.program).fields)

    def _check_labels(self, train: Data) -> None:
        """Refuse to guess classes that no datum shows; say where there is none to guess."""
        if "labelled" not in self.program.fields or not self.layout.strata.sites:
            return
        if not bool(train.labelled.any()):
            raise ValueError(
                "no training row has a label (all are -1), and the program guesses the classes of "
                "others from those that have: give some labels, or take GMVAE, which is given none"
            )
        if bool(train.labelled.all()):
            warn(
                "every training row has a label, so that no class is guessed: ConditionalVAE takes "
                "a fraction of the time, or hide some labels (-1)"
            )

    def _check_rows(self, name: str, part: Data) -> None:
        """Check all rows of a part against the support of what is observed, some at a time."""
        levelled = isinstance(self._settings.observation, (Binarize, Dequantize, Rescale))
        if (
            name != "validation"
            and levelled
            and not part.x.is_floating_point()
            and observes_arguments(self.probe)
        ):
            return  # whatever the integers, the result has the range of the validation rows
        step = max(1, _CHECKED_ELEMENTS // max(1, part.x[0].numel()))
        for begin in range(0, len(part), step):
            rows = self._rows(part[begin : begin + step])
            check_support(self.probe, *rows, part=Part(name, part.rows, begin))

    # ------------------------------------------------------------------------------- the objective

    def _checked_objective(self) -> ELBO:
        """Return the objective, with what it and handlers bring along on the device."""
        is_weighted = self._trained is not self.program
        objective = self._settings.objective or default_objective(self.probe, weighted=is_weighted)
        objective = fitted_objective(objective, self.layout, len(self._data.train))
        program, turns = self.program, self._settings.turns
        self.moving = moving_in(program.model, program.guide, *program.reachable, objective)
        beside = [*getattr(objective, "modules", {}).values(), *self.moving, turns]
        beside += program.around
        self.beside = [module.to(self.device) for module in beside if module is not None]
        with Budget():
            check_objective(objective, self.probe)
        if not isinstance(objective, Objective):
            check_reported(objective, self._weighted_probe() if is_weighted else self.probe)
        settle_single_rows(
            self.batches, program, objective, self.batches.batch_size, *self._rows(self._few)
        )
        return objective

    def _weighted_probe(self) -> Probe:
        """Look at what is trained where the data have weights: the first may be 1 by chance."""
        rows = self.probe.rows
        return Probe(self._trained, *rows, torch.full((len(rows[0]),), 2.0, device=self.device))

    # ------------------------------------------------------------------------------------ the step

    def _step(self) -> Step:
        settings, batch_size = self._settings, self.batches.batch_size
        clip_norm = settings.clip_norm
        if clip_norm is not None:
            clip_norm *= self.layout.full_size or batch_size
        step = Step(
            self._trained, self.objective, Updates(settings.optim, clip_norm, guarded=True),
            prepare=self.batches, engine=settings.engine, num_steps=self.num_steps,
            rare=lambda *draw: len(draw[0]) != batch_size,
        )  # fmt: skip
        if isinstance(self.objective, Objective):
            self.objective.accept(step.model, self._trained.guide, self.layout)
        return step

    def _find_parameters(self) -> None:
        """Run once, under validation and aside from the random state, to find all parameters."""
        rows = self._rows(self._few, program=self._trained)
        modules = [*self.program.modules, *self.beside]
        before = copy.deepcopy([module.state_dict() for module in modules])
        with (
            torch.random.fork_rng(devices=cuda_index(self.device)),
            pyro.validation_enabled(True),
            warnings.catch_warnings(),
        ):
            # The program does not know the units of its data yet.
            warnings.filterwarnings("ignore", message="Encountered NaN")
            self.largest_product = check_step(
                lambda: self.step.parameters,
                lambda: self.step.optimizer,
                lambda count: self.step.find_parameters(
                    *(row[torch.arange(count, device=row.device) % len(row)] for row in rows)
                ),
                self.batches.batch_size,
            )
            self._part_in_turns()
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state, strict=False)

    def _part_in_turns(self) -> None:
        turns = self._settings.turns
        if turns is None:
            return
        rows, parameters = self._rows(self._few), [*self.step.parameters.values()]
        part_in_turns(self._optimizer, parameters, self.program, self.layout, *rows)
        turns.check(self.program, *rows)
        self.step.take_turns(turns, self.layout.full_size)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        if self.step.optimizer is None:
            raise ProgramError(
                "the program has no trainable parameters: nothing can be fitted; hold its modules "
                "as attributes (of a list, in nn.ModuleList), or name them by pyro.module"
            )
        return self.step.optimizer

    def _warn_of_blind_guide(self) -> None:
        with rehearsing(self.program), pyro.validation_enabled(False):
            is_blind = ignores_data(self.program, *self._rows(self._few))
        if is_blind:
            warn(
                "the guide is the same for every datum: none of its latents is computed from the "
                "data, as a prior's are; give it an encoder, such as "
                "Conditional(DiagonalNormal((40,)), context_shape=..., network=MLP)"
            )

    def _shared(self) -> dict[str, Any]:
        settings, schedule = self._settings, self._settings.schedule
        return {
            "program": constant_settings(self.program, self._built),
            "epochs": settings.epochs, "batch_size": self.batches.batch_size,
            "seed": settings.seed, "patience": settings.patience,
            "clip_norm": settings.clip_norm, "objective": described(self.objective),
            "optimizer": type(self._optimizer).__name__,
            "learning_rates": [group["lr"] for group in self._optimizer.param_groups],
            "schedule": getattr(schedule, "__qualname__", repr(schedule)),
            "turns": settings.turns and repr(settings.turns),
            "corruption": settings_of(self.program.around) or None,
            "observation": repr(settings.observation),
            "data": self._data.fingerprint(),
            **self._share_of_labels(),
        }  # fmt: skip

    def _share_of_labels(self) -> dict[str, float]:
        share = self._settings.labelled_share
        return {} if share is None else {"labelled_share": share}


def _placed(program: Program, device: torch.device) -> Program:
    for module in (*program.modules, *program.around):
        module.to(device)
        if not module.training:  # a part in evaluation mode is meant so, a whole is not
            module.train()
    return program


def _with_weights(program: Program, train: Data) -> Program:
    """Return what is trained: the program, or with the weights of its rows as a last field.

    One that takes the weights itself weighs by itself.
    """
    if train.weights is None or "weights" in program.fields:
        return program
    found = Program(weighted(program.model), weighted(program.guide))
    found.fields = (*program.fields, "weights")
    return found
