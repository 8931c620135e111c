"""Defaults of a run: device, objective, the arguments of a program."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vae.datasets import Data, Dataset
from pyro_vae.inference.objectives import AnalyticELBO, Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.refusals import check_objective
from pyro_vae.inference.sites import Layout
from pyro_vae.wording import warn

__all__ = [
    "BATCH_SIZE",
    "arguments",
    "check_labels",
    "check_reported",
    "default_objective",
    "fitted_objective",
    "resolve_device",
    "takes_labels",
    "with_channel",
]

BATCH_SIZE = 128


def default_objective(probe: Probe, *, weighted: bool = False) -> ELBO:
    """Return ``Trace_ELBO``, with its KL in closed form where the program's has one.

    Both have the same expectation; without the noise of a sampled KL, training is faster. With
    several latents the closed form holds under conditions that a run cannot show, so it is left.
    Where handlers weigh data or sites, ``AnalyticELBO``: what Pyro's report is then no bound.

    Args:
        probe: Of the program.
        weighted: Whether the data have weights.
    """
    if weighted or probe.is_weighted:
        return AnalyticELBO()
    if len(probe.layout.latents) > 1:
        return Trace_ELBO()
    (name,) = probe.layout.latents
    model_site, guide_site = (t.nodes[name] for t in (probe.model_trace, probe.guide_trace))
    if not (model_site["mask"] is guide_site["mask"] and guide_site["fn"].has_rsample):
        return Trace_ELBO()
    try:
        with probe.looking():
            torch.distributions.kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return Trace_ELBO()
    return TraceMeanField_ELBO()


def with_channel(program: Program, data: Dataset) -> Dataset:
    """Give images ``(N, H, W)`` the one channel that they have to the program's own families.

    Rows stay as they are for every program whose parts do not say ``event_shape=(1, H, W)``.
    """
    parts = [part for module in program.reachable for part in module.modules()]
    shapes = {getattr(part, "event_shape", None) for part in parts}
    given = data.event_shape
    if len(given) != 2 or given in shapes or (1, *given) not in shapes:
        return data
    train, validation, test = (
        replace(part, x=part.x.unsqueeze(1)) for part in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def check_reported(objective: ELBO, probe: Probe) -> None:
    """Say where a loss of Pyro's is no bound, since handlers or the data's weights are in it.

    Args:
        objective: What is followed, of Pyro's.
        probe: Of the program with all that weighs it.

    Raises:
        ValueError: If it cannot be followed where there are weights.
    """
    if not probe.is_weighted:
        return
    check_objective(objective, probe)
    warn(
        f"{type(objective).__name__} counts what handlers or the data's weights weigh in its loss: "
        "train_nats is no bound, validation_elbo_nats is; pyro_vae's ELBO() reports the bound of "
        "both"
    )


def takes_labels(model: Callable[..., Any]) -> bool:
    """Whether a program is called with data and labels, or with data alone."""
    parameters = inspect.signature(model).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(needed) > 1


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    available = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + available
    if str(device) == "auto":
        return torch.device(available[0])
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    known = {*available, *(name.split(":")[0] for name in available)}
    if chosen is None or str(chosen) not in known:
        raise ValueError(f"device={str(device)!r} is not here; choose from {', '.join(available)}")
    return chosen


def check_labels(with_labels: bool, data: Dataset, model: Any = None) -> None:
    """Refuse data without labels for a program that takes them, or with more classes than it has.

    Raises:
        ValueError: If a program that has ``num_classes`` meets a label that is not below it.
    """
    if not with_labels:
        return
    if data.train.labels is None:
        raise ValueError("the program takes labels, but the data have none: give (x, labels)")
    num_classes = getattr(getattr(model, "__self__", model), "num_classes", None)
    if not isinstance(num_classes, int):
        return
    for part in ("train", "validation", "test"):
        labels = getattr(data, part).labels
        largest = -1 if labels is None or not len(labels) else int(labels.max())
        if largest >= num_classes:
            names = data.classes or ()
            name = f" ({names[largest]!r})" if largest < len(names) else ""
            raise ValueError(
                f"the {part} labels go up to {largest}{name}, but the program has "
                f"num_classes={num_classes}: give it {largest + 1} classes or more, or repair the "
                "labels"
            )


def arguments(data: Data, with_labels: bool) -> tuple[Tensor, ...]:
    """Return what a program is called with for all rows at once."""
    if with_labels and data.labels is not None:
        return (data.x, data.labels)
    return (data.x,)


def fitted_objective(objective: ELBO, layout: Layout, num_data: int) -> ELBO:
    """Return the objective with what it would have to guess: plates, and the size of the data set.

    Args:
        objective: As it was given; it is left as it is.
        layout: Of the program.
        num_data: How many data the batches are taken from.
    """
    objective = copy.copy(objective)
    if getattr(objective, "num_data", num_data) is None:
        objective.num_data = num_data
    # An ELBO that has to guess the nesting runs the program once more and moves the random state.
    if objective.max_plate_nesting == math.inf and not isinstance(objective, Objective):
        particles = objective.vectorize_particles and objective.num_particles > 1
        objective.max_plate_nesting = layout.max_plate_nesting + particles
    return objective
