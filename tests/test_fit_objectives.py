"""Every objective trains through ``fit``, recorded as eagerly, with all that it brings along."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bits import same
from pyro.infer import TraceGraph_ELBO
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, Bernoulli, StandardNormal
from pyro_vae.engine import checkpoint
from pyro_vae.inference import (
    CIWAE,
    DIPVAE,
    ELBO,
    IWAE,
    MIWAE,
    NVIL,
    PIWAE,
    RLOO,
    RWS,
    TVO,
    VIMCO,
    AnalyticELBO,
    BetaTCVAE,
    BetaVAE,
    Capacity,
    Controlled,
    DisARM,
    DReG,
    FreeBits,
    InChunks,
    InfoVAE,
    KLWeight,
    Linear,
    Objective,
    Renyi,
    RWSDReG,
    Scheduled,
)


def baseline() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))


NORMAL: dict[str, Callable[[], Any]] = {
    "ELBO": partial(ELBO, 2),
    "AnalyticELBO": AnalyticELBO,
    "IWAE": partial(IWAE, 3),
    "Renyi": partial(Renyi, 0.5, 3),
    "MIWAE": partial(MIWAE, 2, 2),
    "CIWAE": partial(CIWAE, 0.5, 3),
    "PIWAE": partial(PIWAE, 2, 2),
    "DReG": partial(DReG, 3),
    "RWS": partial(RWS, 3),
    "RWSDReG": partial(RWSDReG, 3),
    "TVO": partial(TVO, 3),
    "BetaVAE": lambda: BetaVAE(Scheduled(Linear(0.0, 2.0, until=0.5))),
    "BetaVAE, controlled": lambda: BetaVAE(Controlled(1.0)),
    "Capacity": partial(Capacity, 2.0),
    "FreeBits": partial(FreeBits, 0.3),
    "InfoVAE": InfoVAE,
    "BetaTCVAE": partial(BetaTCVAE, 2.0),
    "DIPVAE": DIPVAE,
}
BITS: dict[str, Callable[[], Any]] = {
    "ELBO": partial(ELBO, 2),
    "RLOO": partial(RLOO, 3),
    "VIMCO": partial(VIMCO, 3),
    "NVIL": NVIL,
    "NVIL, network": lambda: NVIL(baseline()),
    "DisARM": partial(DisARM, 4),
    "RWS": partial(RWS, 3),
    "TVO": partial(TVO, 3),
}
NEVER_RECORDED = {
    "InChunks": (StandardNormal, lambda: InChunks(IWAE(4), 2)),
    "TraceGraph_ELBO": (Bernoulli, TraceGraph_ELBO),
}
CASES = {
    **{f"{name}, normal latents": (StandardNormal, build) for name, build in NORMAL.items()},
    **{f"{name}, bits": (Bernoulli, build) for name, build in BITS.items()},
}
# Each shape of a batch is recorded anew, which takes most of the time.
SMALLER_LAST = {"BetaTCVAE, normal latents"}
# What ``fit`` moves or trains with them; the steps of the others have tests of their own.
MOVING = {
    "BetaVAE, normal latents",
    "BetaVAE, controlled, normal latents",
    "NVIL, network, bits",
}
ALONE = [
    pytest.param(name, marks=() if name in MOVING | SMALLER_LAST else pytest.mark.slow)
    for name in CASES
]


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


@pytest.mark.parametrize("name", ALONE)
def test_recorded_runs_have_the_bits_of_eager_ones(name: str) -> None:
    prior, build = CASES[name]
    size = 7 if name in SMALLER_LAST else 8
    found, expected = (
        trained(prior, build(), engine, batch_size=size) for engine in ("recorded", "eager")
    )
    assert same(found, expected)
    if "network" in name:
        (after,), before = found[2], build().modules["baseline"].state_dict()
        assert not any(torch.equal(after[key], value) for key, value in before.items())
    assert len({record["train_nats"] for record in expected[0]}) == 2


@pytest.mark.parametrize("name", NEVER_RECORDED)
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
