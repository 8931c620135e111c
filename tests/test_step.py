"""A step is gradients, a place between, and an update; what is done between has the same effect."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from bits import same
from recorded import Small, small
from torch import Tensor

from pyro_vae.engine.step import Step
from pyro_vae.engine.updates import Updates
from pyro_vae.inference import ELBO
from pyro_vae.inference.program import Program

X = small(Small).args[0]
NUM_STEPS = 5


def steps(between: Any = None, *, engine: str, rate: float = 0.05, **options: Any) -> Any:
    """Take steps of plain gradient descent; return the step, the weights before and after."""
    torch.manual_seed(3)
    pair = small(Small)
    updates = Updates(partial(torch.optim.SGD, lr=rate), None, guarded=True)
    step = Step(Program(pair.model, pair.guide), ELBO(), updates, engine=engine, **options)
    step.between = between
    before = [p.detach().clone() for p in step.program.parameters().values()]
    torch.manual_seed(11)
    losses = [float(step.update(X)) for _ in range(NUM_STEPS)]
    return step, before, [p.detach() for p in step.parameters.values()], losses


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_what_leaves_the_gradients_as_they_are_leaves_the_bits(engine):
    seen: list[int] = []

    def look(gradients: list[Tensor | None]) -> list[Tensor | None]:
        seen.append(len(gradients))
        return gradients

    step, _, weights, losses = steps(look, engine=engine)
    _, _, expected, its = steps(engine="eager")
    assert same(weights, expected)
    assert losses == its
    assert seen == [len(step.parameters)] * NUM_STEPS
    assert step.recorded is (engine == "recorded")


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_the_update_takes_what_is_returned(engine):
    def doubled(gradients: list[Tensor | None]) -> list[Tensor | None]:
        return [None if g is None else 2 * g for g in gradients]

    _, _, weights, _ = steps(doubled, engine=engine, rate=0.05)
    _, _, expected, _ = steps(engine="eager", rate=0.1)
    for found, its in zip(weights, expected, strict=True):
        torch.testing.assert_close(found, its)


def test_the_guard_sees_what_is_returned():
    def broken(gradients: list[Tensor | None]) -> list[Tensor | None]:
        return [g if g is None else g * float("nan") for g in gradients]

    step, before, weights, _ = steps(broken, engine="eager")
    assert same(before, weights)
    assert (step.updates.failed.item(), step.updates.num_made.item()) == (1, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"engine": "fast"}, ValueError, "engine='fast': choose from"),
     ({"loss": 3}, TypeError, "loss=3: expected a pyro.infer.ELBO")],
)  # fmt: skip
def test_what_no_step_is_made_of_is_refused(options, error, message):
    pair = small(Small)
    updates = Updates(torch.optim.SGD, None, guarded=False)
    with pytest.raises(error, match=message):
        Step(Program(pair.model, pair.guide), options.pop("loss", ELBO()), updates, **options)
