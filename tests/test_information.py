"""Mutual information and the aggregate posterior, against closed forms and against counting."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import PROGRAMS
from pyro.distributions.transforms import Planar

from pyro_vae.evaluation import (
    Estimate,
    Information,
    UnitActivity,
    elbo,
    mutual_information,
    verdict,
)
from pyro_vae.evaluation.information import LayerInformation
from pyro_vae.inference import Program


def prior_and_data(x, shape=(2,)):
    z = pyro.sample("z", dist.Normal(torch.zeros(shape).double(), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(x * 0 + z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def model(x):
    with pyro.plate("data", len(x)):
        prior_and_data(x)


GAIN, SCALE = torch.tensor([1.5, 0.0]).double(), torch.tensor([0.8, 1.0]).double()


def guide(x):
    """z_u = g_u x + s_u e: of normal data, a channel with a known capacity; unit 1 has none."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(GAIN * x, SCALE).to_event(1))


def test_a_gaussian_channel_has_its_closed_form():
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)).double()
    found = mutual_information(model, guide, x)
    capacity = 0.5 * math.log(1 + (1.5 / 0.8) ** 2)
    assert abs(found.nats - capacity) < 5 * found.nats.standard_error < 0.2
    units = found.layers["z"].unit_nats
    assert units[0].item() == pytest.approx(capacity, abs=5 * found.nats.standard_error)
    assert abs(units[1].item()) < 1e-10
    assert found.layers["z"].nats == pytest.approx(found.nats)
    # The aggregate posterior is normal, too: KL(N(0, g^2 + s^2) | N(0, 1)) of the first unit.
    variance = 1.5**2 + 0.8**2
    aggregate_kl = 0.5 * (variance - 1 - math.log(variance))
    assert found.aggregate_kl == pytest.approx(aggregate_kl, abs=0.2)
    assert found.ceiling == pytest.approx(math.log(1000))


def test_data_far_apart_are_told_from_each_other_and_no_more():
    x = 1000.0 * torch.arange(20).double().unsqueeze(1)
    found = mutual_information(model, guide, x)
    assert found.nats == pytest.approx(math.log(20)) == found.ceiling
    assert found.nats + found.aggregate_kl == pytest.approx(
        elbo(model, guide, x, seed=0).rate_nats, rel=1e-3
    )


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "mixes particles"])
@pytest.mark.parametrize("batch_size", [4, 1000])
def test_every_programs_information_is_that_of_all_pairs(name, batch_size):
    pair = PROGRAMS[name]()
    found = mutual_information(pair.model, pair.guide, *pair.args, batch_size=batch_size, seed=3)
    program, num = Program(pair.model, pair.guide), len(pair.args[0])
    # Each draw's density under each datum, one pair after the other, by the guide itself.
    matrix = torch.empty(num, num).double()
    log_prior = torch.empty(num).double()
    with program.evaluating(seed=3):
        chunks = zip(*(arg.split(batch_size) for arg in pair.args), strict=True)
        runs = [program.traces(*chunk) for chunk in chunks]
        for i in range(num):
            model_trace, guide_trace = runs[i // batch_size]
            row = i % batch_size
            values = {
                site: guide_trace.nodes[site]["value"].movedim(
                    -1 - len(guide_trace.nodes[site]["fn"].event_shape), 0
                )[row]
                for site in pair.latents
            }
            for j in range(num):
                one = tuple(arg[j : j + 1] for arg in pair.args)
                placed = {
                    site: value.unsqueeze(-1 - len(guide_trace.nodes[site]["fn"].event_shape))
                    for site, value in values.items()
                }
                trace = pyro.poutine.trace(
                    pyro.poutine.condition(program.guide, data=placed)
                ).get_trace(*one)
                matrix[i, j] = trace.log_prob_sum()
            sites = [model_trace.nodes[site] for site in pair.latents]
            log_prior[i] = sum(
                s["fn"].log_prob(s["value"]).movedim(-1, 0)[row].sum() for s in sites
            )
    own = matrix.diagonal()
    aggregate = matrix.logsumexp(1) - math.log(num)
    assert found.nats == pytest.approx((own - aggregate).mean().item(), abs=1e-6)
    assert found.aggregate_kl == pytest.approx((aggregate - log_prior).mean().item(), abs=1e-6)
    assert list(found.layers) == list(pair.latents)
    if len(pair.latents) == 1:
        assert found.layers[pair.latents[0]].nats == pytest.approx(found.nats)
    for layer in found.layers.values():
        assert layer.nats <= found.ceiling + 1e-9


def test_a_deeper_layer_tells_of_the_layer_before():
    def two(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def up(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x, 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(2.0 * z1, 1.0).to_event(1))

    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).double()
    found = mutual_information(two, up, x, batch_size=40_000)
    first, second = found.layers["z1"], found.layers["z2"]
    assert first.nats == pytest.approx(0.5 * math.log(1 + 4), abs=0.15)
    assert second.nats == pytest.approx(0.5 * math.log(1 + 4 * 1.25), abs=0.15)
    # z2 is drawn from z1 alone, and adds nothing.
    assert found.nats == pytest.approx(first.nats, abs=1e-6)


def planar(x):
    flow = Planar(2).double()
    with pyro.plate("data", len(x)):
        base = dist.Normal(GAIN * x, SCALE).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))


def auxiliary(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(GAIN * x, SCALE).to_event(1))
        pyro.sample("a", dist.Normal(x[:, 0], 1.0), infer={"is_auxiliary": True})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (planar, "site 'z' has a flow that scores its own draws alone"),
        (auxiliary, "site 'a' is none of the model's"),
    ],
)
def test_what_has_no_information_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        mutual_information(model, wrong, torch.zeros(4, 1).double())
    assert "\n" not in str(caught.value)


# The verdict --------------------------------------------------------------------------------------


def of(num_active, num_units):
    activity = torch.where(torch.arange(num_units) < num_active, 1.0, 0.001)
    return UnitActivity(None, activity, 0.01)


def test_the_verdict_names_unused_layers_and_what_to_try():
    lines = verdict(
        {"z1": of(7, 16), "z2": of(1, 16), "z3": of(0, 16)}, {"z1": 12.3, "z2": 0.2, "z3": 0.001}
    )
    assert lines[:3] == [
        "layer z1 is used: 7 of 16 units active, 12.30 nats",
        "layer z2 is hardly used: 1 of 16 units active, 0.20 nats",
        "layer z3 is unused: 0 of 16 units active, 0.00 nats",
    ]
    assert "FreeBits" in lines[3]
    assert len(lines) == 4


def test_the_verdict_on_what_is_used_gives_no_advice():
    assert verdict({"z": of(2, 2)}, {"z": 3.0}) == [
        "layer z is used: 2 of 2 units active, 3.00 nats"
    ]


def informed(nats, *, ceiling=7.0):
    nats = Estimate(nats, 0.01)
    return Information(nats, ceiling, Estimate(0.0), {"z": LayerInformation(nats, None)})


def test_a_run_that_still_rises_is_to_go_on_first():
    *_, advice = verdict({"z": of(0, 9)}, {"z": 0.1}, is_rising=True)
    assert advice.startswith("to make the model use them, try more epochs (epochs")
    *_, advice = verdict({"z": of(0, 9)}, {"z": 0.1})
    assert "epochs" not in advice


# Active and all units, KL in nats, information, and what is said of the layer.
USE = {
    "few nats of many units": (4, 40, 1.67, None, "is hardly used"),
    "many nats in few units": (3, 40, 19.8, None, "is used"),
    "nothing": (0, 40, 0.01, None, "is unused"),
    "one unit that tells much": (1, 1, 1.67, None, "is used"),
    "one bit": (1, 1, 0.6, None, "is used"),
    "one unit that tells little": (1, 1, 0.05, None, "is hardly used"),
    "one of ten": (10, 10, 1.9, None, "is used"),
    "latents of small units": (0, 20, 30.0, None, "is used"),
    "a posterior that costs, whatever the datum": (0, 8, 5.0, informed(0.02), "is unused"),
    "information beside a larger KL": (8, 8, 15.0, informed(6.1), "is used"),
    "information of few data": (8, 8, 15.0, informed(0.7, ceiling=0.7), "is used"),
    "no KL, and some units": (8, 16, None, None, "is used"),
    "no KL, and few units": (1, 16, None, None, "is hardly used"),
    "no KL, and no unit": (0, 16, None, None, "is unused"),
    "a KL that is not finite": (2, 2, float("inf"), None, "is used"),
}


@pytest.mark.parametrize("case", USE)
def test_the_verdict_goes_by_nats_and_units(case):
    num_active, num_units, kl, information, said = USE[case]
    kl_nats = {} if kl is None else {"z": kl}
    line, *advice = verdict({"z": of(num_active, num_units)}, kl_nats, information)
    assert line.startswith(f"layer z {said}: {num_active} of {num_units} units active")
    assert bool(advice) == (said != "is used")
    assert ("dead weight" in line) == (said == "is used" and num_active < 0.1 * num_units)
