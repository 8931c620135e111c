"""What an objective cannot train, or Pyro's would report wrongly, is said before the first step."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Bits, Chain, Gaussian
from laws import ELBOS, PROGRAMS
from pyro.infer import (
    EnergyDistance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.inference import ELBO, IWAE, Probe, Program
from pyro_vae.inference.handlers import KLWeight
from pyro_vae.inference.objectives import AnalyticELBO
from pyro_vae.inference.refusals import check_objective
from pyro_vae.inference.regularized import BetaVAE
from pyro_vae.inference.schedules import Linear, Scheduled

mean_field = TraceMeanField_ELBO
renyi = partial(RenyiELBO, alpha=0.0, num_particles=3)
tail_adaptive = partial(TraceTailAdaptive_ELBO, num_particles=2, vectorize_particles=True)


class Enumerated(nn.Module):
    """One of three values, marked to be summed out."""

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([0.3, -1.0], dtype=torch.float64)
        self.logits = nn.Parameter(torch.tensor([0.1, 0.5, -0.3], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=0 * self.logits))
            pyro.sample("x", dist.Normal(self.logits[z], 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})


class Flow(Gaussian):
    """A guide without a closed form of its KL."""

    def guide(self, x):
        with self.plate(x):
            base = dist.Normal(x @ self.a + self.c, self.s.exp()).to_event(1)
            shift = torch.distributions.AffineTransform(0.1, 2.0)
            pyro.sample("z", dist.TransformedDistribution(base, [shift]))


def weighed(model_weight, guide_weight, build=Gaussian):
    bed = build()
    bed.model = KLWeight(model_weight)(bed.model)
    bed.guide = KLWeight(guide_weight)(bed.guide)
    return bed


NO_SAMPLE = r"num_particles=-?\d: at least one sample is needed, .* give 1 or more"
REFUSED = {
    "no particles": (Trace_ELBO(num_particles=0), Gaussian, f"Trace_ELBO: {NO_SAMPLE}"),
    "fewer": (mean_field(num_particles=-1), Gaussian, f"TraceMeanField_ELBO: {NO_SAMPLE}"),
    "no particles, graph": (TraceGraph_ELBO(num_particles=0), Bits, NO_SAMPLE),
    "Renyi, no gradient": (renyi(), Bits, "exactly zero; use VIMCO or RWS"),
    "Renyi, another order": (RenyiELBO(alpha=0.5, num_particles=2), Bits, "a part of the exact"),
    "MMD": (Trace_MMD(kernel={}), Gaussian, "no bound on .* use InfoVAE"),
    "MMD, score": (Trace_MMD(kernel={}), Bits, "carry no gradients: .* use ELBO, RLOO"),
    "Renyi, enumeration": (renyi(), Enumerated, "enumeration; use TraceEnum_ELBO"),
    "Renyi, subsampled": (
        renyi(),
        partial(Gaussian, full_size=30),
        "power 15 .* use IWAE",
    ),
    "Renyi, weighed": (renyi(), partial(weighed, 0.5, 0.5), "power 0.5 .* 'z' is scaled"),
    "mean field, score": (mean_field(), Bits, "carry no gradients; use AnalyticELBO"),
    "mean field, order": (mean_field(), Chain, "declares 'z2', 'z1', the guide 'z1', 'z2'; use An"),
    "mean field, flow": (mean_field(), Flow, "no closed form for the KL of site 'z'; use Analytic"),
    "wake-sleep": (ReweightedWakeSleep(), Gaussian, "whole batch jointly, .* use RWS"),
    "tail-adaptive": (tail_adaptive(), Gaussian, "whole batch jointly, .* use DReG"),
    "weight on one side": (
        mean_field(),
        partial(weighed, 0.1, 1.0),
        "weighs 0.1 in the model",
    ),
    "the other side": (
        ELBO(),
        partial(weighed, 1.0, Scheduled(Linear())),
        "in the model and 0 in",
    ),
    "one side, Pyro's": (Trace_ELBO(), partial(weighed, 0.0, 1.0), "the same KLWeight"),
    "ours, score": (IWAE(2), Bits, "IWAE needs reparameterised latents"),
    "ours, beta": (BetaVAE(), Bits, "BetaVAE needs reparameterised latents"),
}


def checked(objective, program):
    found = Program(program.model, program.guide)
    check_objective(objective, Probe(found, program.x))


@pytest.mark.parametrize(("objective", "build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused(objective, build, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        checked(objective, build())
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


ALLOWED = {
    "Renyi": (renyi(), Gaussian),
    "mean field": (mean_field(), Gaussian),
    "mean field, subsampled": (mean_field(), partial(Gaussian, full_size=30)),
    "mean field, weighed": (mean_field(), partial(weighed, 0.5, 0.5)),
    "Monte Carlo": (Trace_ELBO(), Flow),
    "Monte Carlo, bits": (Trace_ELBO(), Bits),
    "graph": (TraceGraph_ELBO(), Bits),
    "ours": (ELBO(), Bits),
    "ours, analytic": (AnalyticELBO(), Chain),
    "ours, weighed": (ELBO(2), partial(weighed, *[Scheduled(Linear(0.0, 1.0))] * 2)),
    "a function": (lambda model, guide, x: None, Gaussian),
}


@pytest.mark.parametrize(("objective", "build"), ALLOWED.values(), ids=ALLOWED)
def test_what_can_be_trained_is_not(objective, build):
    checked(objective, build())


IN_SVI = {
    name: REFUSED[name]
    for name in (
        "Renyi, no gradient", "Renyi, another order", "Renyi, subsampled", "Renyi, weighed",
        "mean field, score", "mean field, order", "wake-sleep", "tail-adaptive", "MMD, score",
        "ours, score",
    )
} | {
    "energy distance": (EnergyDistance(), Bits, "carry no gradients"),
    "a method of one": (mean_field().differentiable_loss, Bits, "carry no gradients"),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "build", "message"), IN_SVI.values(), ids=IN_SVI)
def test_what_leads_to_a_wrong_place_is_refused_by_svi_before_its_first_step(loss, build, message):
    bed = build()
    before = copy.deepcopy(bed.state_dict())
    with pytest.raises(ValueError, match=message):
        SVI(bed.model, bed.guide, partial(torch.optim.Adam, lr=0.1), loss).step(bed.x)
    assert all(torch.equal(value, before[name]) for name, value in bed.state_dict().items())


def test_svi_refuses_programs_without_a_plate_of_data_too():
    p = nn.Parameter(torch.zeros(()))

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("p", p)))

    with pytest.raises(
        ValueError, match=r"RenyiELBO\(alpha=2\) does not train the guide of site 'z'"
    ):
        SVI(model, guide, partial(torch.optim.Adam, lr=0.1), RenyiELBO(2.0, 2)).step()


@pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS)
def test_refusals_over_all_programs_are_those_expected(build):
    pair = build()
    probe = Probe(Program(pair.model, pair.guide), *pair.args)
    refused = []
    for name, objective in {**ELBOS, "ours": ELBO, "analytic": AnalyticELBO, "IWAE": IWAE}.items():
        try:
            check_objective(objective(), probe)
        except ValueError:
            refused.append(name)
    assert refused == (["TraceMeanField_ELBO"] if pair.latents == ("z1", "z2") else [])


# ------------------------------------------------------- that Pyro's numbers are those refused


def pyros_gradient(elbo, program, seed=0):
    for parameter in program.parameters():
        parameter.grad = None
    torch.manual_seed(seed)

    def model(x):
        pyro.module("program", program)
        return type(program).model(program, x)

    loss = elbo.loss_and_grads(model, program.guide, program.x)
    return loss, {name: p.grad for name, p in program.named_parameters()}


def test_renyi_never_trains_a_guide_without_gradients():
    bed = Bits()
    _, gradient = pyros_gradient(renyi(max_plate_nesting=1), bed)
    assert all(gradient[name] is None or not gradient[name].any() for name in bed.of_guide)
    assert any(gradient[name].any() for name in bed.of_model)
    _, gradient = pyros_gradient(Trace_ELBO(max_plate_nesting=1), bed)
    assert all(gradient[name].any() for name in bed.of_guide)


def test_renyi_on_a_subsampled_plate_exceeds_log_p():
    bed = Gaussian(full_size=200)
    log_p = 100 * bed.log_p().sum().item()
    options = {"num_particles": 500, "max_plate_nesting": 1, "vectorize_particles": True}
    torch.manual_seed(0)
    theirs = -RenyiELBO(alpha=0.0, **options).loss(bed.model, bed.guide, bed.x)
    torch.manual_seed(0)
    ours = -IWAE(500).loss(bed.model, bed.guide, bed.x)
    assert theirs > log_p + 1.0
    assert ours == pytest.approx(log_p, abs=0.01 * abs(log_p))


def test_mean_field_scales_the_kl_by_the_guides_weight_alone():
    bed = weighed(0.1, 1.0)
    plain = Gaussian()
    found, whole = (
        mean_field(max_plate_nesting=1).loss(b.model, b.guide, b.x)
        for b in (bed, plain)
        if torch.manual_seed(0)
    )
    assert found == pytest.approx(whole)  # as if nothing had been weighed in the model


def test_wake_sleep_weighs_the_batch_jointly():
    bed = Gaussian()
    log_p = bed.log_p().sum().item()
    elbo = ReweightedWakeSleep(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for seed in range(30):
        torch.manual_seed(seed)
        losses.append(elbo.loss(bed.model, bed.guide, bed.x.repeat(40, 1))[0])
    gap = sum(losses) / len(losses) + 40 * log_p
    torch.manual_seed(0)
    ours = IWAE(20).loss(bed.model, bed.guide, bed.x.repeat(40, 1)) + 40 * log_p
    assert gap > 3 * ours  # each datum has its own weights here


def test_without_particles_pyro_has_no_gradient():
    bed = Gaussian()
    loss, gradient = pyros_gradient(Trace_ELBO(num_particles=0, max_plate_nesting=1), bed)
    assert loss == 0
    assert all(each is None for each in gradient.values())
    x = bed.x.float().repeat(3, 1)
    with pytest.raises(ValueError, match=NO_SAMPLE):
        fit(bed.float(), x, objective=Trace_ELBO(num_particles=0), epochs=1, batch_size=2)


def test_only_trace_enum_sums_out():
    program = Enumerated()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    checked(elbo, program)
    z = torch.arange(3)
    q = program.logits.softmax(0)
    log_p = dist.Normal(program.logits[z, None], 1.0).log_prob(program.x) - math.log(3)
    exact = (q[:, None] * (log_p - q.log()[:, None])).sum()
    assert elbo.loss(program.model, program.guide, program.x) == pytest.approx(-exact.item())
