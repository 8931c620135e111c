"""What objectives bring along trains and moves through ``fit``, recorded as eagerly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bits import same
from pyro.infer import TraceGraph_ELBO
from quick import some
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, Bernoulli, StandardNormal
from pyro_vae.engine import checkpoint
from pyro_vae.inference import (
    ELBO,
    IWAE,
    NVIL,
    BetaTCVAE,
    BetaVAE,
    Controlled,
    InChunks,
    KLWeight,
    Linear,
    Objective,
    Scheduled,
)


def baseline() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))


# What ``fit`` moves or trains with them, and one that knows the batch; the steps of the others have
# tests of their own.
CASES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "scheduled": (StandardNormal, lambda: BetaVAE(Scheduled(Linear(0.0, 2.0, until=0.5)))),
    "controlled": (StandardNormal, lambda: BetaVAE(Controlled(1.0))),
    "of the batch": (StandardNormal, partial(BetaTCVAE, 2.0)),
    "a network": (Bernoulli, lambda: NVIL(baseline())),
}
NEVER_RECORDED = {
    "InChunks": (StandardNormal, lambda: InChunks(IWAE(4), 2)),
    "TraceGraph_ELBO": (Bernoulli, TraceGraph_ELBO),
}


def trained(prior: Any, objective: Any, engine: str, **settings: Any) -> tuple[Any, ...]:
    x = (torch.rand(40, 4, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "prior": prior,
        "likelihood": Bernoulli,
        "network": partial(MLP, hidden=(5,)),
    }
    if prior is Bernoulli:
        parts["posterior"] = Bernoulli
    vae = VAE.assemble((4,), (3,), **parts)
    settings = {"epochs": 2, "batch_size": 8, "engine": engine, **settings}
    history = fit(vae, x, objective=objective, **settings).history
    modules = getattr(objective, "modules", {})
    return history, dict(vae.state_dict()), [dict(m.state_dict()) for m in modules.values()]


@pytest.mark.parametrize("name", some(CASES, "of the batch"))
def test_recorded_runs_have_the_bits_of_eager_ones(name: str) -> None:
    prior, build = CASES[name]
    size = 7 if name == "of the batch" else 8  # with a smaller last one, which is recorded anew
    found, expected = (
        trained(prior, build(), engine, batch_size=size) for engine in ("recorded", "eager")
    )
    assert same(found, expected)
    if name == "a network":
        (after,), before = found[2], build().modules["baseline"].state_dict()
        assert not any(torch.equal(after[key], value) for key, value in before.items())
    assert len({record["train_nats"] for record in expected[0]}) == 2


@pytest.mark.parametrize("name", some(NEVER_RECORDED, "TraceGraph_ELBO"))
def test_the_others_say_why_they_run_eagerly(name: str) -> None:
    prior, build = NEVER_RECORDED[name]
    with pytest.warns(UserWarning, match="running eagerly, since "):
        found = trained(prior, build(), "recorded")
    assert same(found, trained(prior, build(), "eager"))


RESUMED: dict[str, tuple[Any, Callable[[], Objective]]] = {
    "controlled weight": (StandardNormal, lambda: BetaVAE(Controlled(1.0))),
    "baseline": (Bernoulli, lambda: NVIL(baseline())),
}


@pytest.mark.parametrize("name", RESUMED)
def test_what_an_objective_brings_along_is_in_the_checkpoint(name: str, tmp_path) -> None:
    prior, build = RESUMED[name]
    whole = trained(prior, build(), "auto", out=tmp_path / "whole")
    original = checkpoint.save

    class Stop(Exception):
        pass

    def stop(*args: Any, **options: Any) -> Any:
        original(*args, **options)
        if options["step"] == 5:
            raise Stop

    options = {"out": tmp_path / "stopped", "checkpoint_seconds": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(Stop):
            trained(prior, build(), "auto", **options)
    assert same(trained(prior, build(), "auto", resume=True, **options), whole)


def test_a_moving_weight_of_a_handler_moves_in_fit_and_the_step_stays_recorded() -> None:
    weight = Scheduled(Linear(0.0, 1.0, until=1.0))
    torch.manual_seed(0)
    vae = VAE.assemble((4,), (3,), likelihood=Bernoulli, network=partial(MLP, hidden=(5,)))
    x = (torch.rand(40, 4) < 0.4).float()
    handler = KLWeight(weight)
    fit(handler(vae.model), handler(vae.guide), x, objective=ELBO(), epochs=3, batch_size=7)
    num_steps = 3 * 5
    assert weight.value.item() == pytest.approx((num_steps - 1) / num_steps)
