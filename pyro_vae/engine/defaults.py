"""Defaults of a run: the device, the objective, the channel of images."""

from __future__ import annotations

import copy
import math

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.datasets import Data, Dataset
from pyro_vae.inference.objectives import AnalyticELBO, Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.reconstruction import Reconstruction
from pyro_vae.inference.refusals import check_objective
from pyro_vae.inference.sites import Layout
from pyro_vae.wording import warn

__all__ = [
    "BATCH_SIZE",
    "check_reported",
    "default_objective",
    "fitted_objective",
    "resolve_device",
    "with_channel",
]

BATCH_SIZE = 128


def default_objective(probe: Probe, *, weighted: bool = False) -> ELBO:
    """Return ``Trace_ELBO``, with its KL in closed form where the program's has one.

    Both have the same expectation; without the noise of a sampled KL, training is faster. With
    several latents the closed form holds under conditions that a run cannot show, so it is left.
    Where handlers weigh data or sites, or components declare auxiliary losses, ``AnalyticELBO``:
    what Pyro's report is then no bound. So it is where sites are marked to be enumerated and can
    be, since Pyro's would sample them. Where the guide draws a point, ``Reconstruction``: there is
    no bound.

    Args:
        probe: Of the program.
        weighted: Whether the data have weights.
    """
    if probe.terms.points:
        return Reconstruction()
    strata = probe.layout.strata
    run_through = bool(strata.sites) and strata.obstacle is None
    if weighted or probe.is_weighted or probe.terms.auxiliary or run_through:
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
    return data.map(_with_channel)


def _with_channel(part: Data) -> Data:
    alike = {n: values for n, values in part.fields.items() if values.shape == part.x.shape}
    return part.replace(**{n: alike[n].unsqueeze(1) for n in ("x", "mask") if n in alike})


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
