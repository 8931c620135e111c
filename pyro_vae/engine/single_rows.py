"""Avoid batches of a single row for programs that cannot be trained on one.

Batch normalisation refuses it, and a variance over the batch is not a number there. What an epoch
leaves over then joins the batch before it.
"""

from __future__ import annotations

import math
from typing import Any

from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.engine.data import Batches
from pyro_vae.engine.failure import rehearsing
from pyro_vae.inference.program import Program
from pyro_vae.wording import option

__all__ = ["settle_single_rows"]


def settle_single_rows(
    batches: Batches, program: Program, objective: ELBO, batch_size: int, *rows: Tensor
) -> None:
    """Let a single row that is left over join the batch before it, where it has to.

    Args:
        batches: Of the training rows.
        program: In training mode.
        objective: What it is trained with.
        batch_size: As it was given.
        rows: Arguments of model and guide, three rows or fewer.

    Raises:
        ValueError: If every batch is a single row, and the program trains on several alone.
    """
    if batch_size > 1 and not batches.ends_in_single:
        return
    one = tuple(row[:1] for row in rows)
    if _trains(program, objective, *one):
        return
    if batch_size > 1:
        batches.joins_single = True
    elif len(rows[0]) > 1 and _trains(program, objective, *rows):
        raise ValueError(
            f"{option('batch_size', 1)}: the program cannot be trained on a single row, as batch "
            "normalisation and other statistics over a batch cannot; give 2 or more"
        )


def _trains(program: Program, objective: ELBO, *rows: Tensor) -> bool:
    """Whether a step on these rows has a loss and gradients that are finite."""
    beside = [*getattr(objective, "modules", {}).values()]
    parameters = [p for module in (*program.reachable, *beside) for p in module.parameters()]
    try:
        with rehearsing(program, beside):
            return _is_finite(objective, program, parameters, rows)
    except Exception:  # whatever the reason, a step like it would end the run
        return False
    finally:
        for parameter in parameters:
            parameter.grad = None


def _is_finite(
    objective: Any, program: Program, parameters: list[Any], rows: tuple[Tensor, ...]
) -> bool:
    loss = objective.loss_and_grads(program.model, program.guide, *rows)
    if not math.isfinite(loss):
        return False
    return all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)
