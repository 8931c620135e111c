"""Effect handlers: what each changes in the gradient, exactly, and that the bound stays."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from exact import Bits, Chain, Gaussian, bed_mean, distance, exact, expected
from laws import PROGRAMS
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.inference import ELBO, IWAE, Probe, Program, ProgramError, site_terms
from pyro_vae.inference.handlers import Frozen, KLWeight, StickingTheLanding, Temperature
from pyro_vae.inference.objectives import AnalyticELBO
from pyro_vae.inference.schedules import Controlled, Linear, Scheduled

float64 = partial(torch.tensor, dtype=torch.float64)


def mean(log_w):
    return log_w.mean(0)


def weighed(bed, weight, *, guide=None):
    bed.model, bed.guide = KLWeight(weight)(bed.model), KLWeight(guide or weight)(bed.guide)
    return bed


def gradient_of_weighted(bed, weight):
    """Differentiate E[log p(x | z)] - weight KL as a whole."""

    def kl(log_p, log_q):
        return (log_q - log_prior(bed)).mean(0)

    def log_prior(bed):
        noise, _ = bed.tuples(1)
        z = bed.draw(noise, bed.x)
        if isinstance(bed, Bits):
            return (z * bed.r - nn.functional.softplus(bed.r)).sum(-1)
        if isinstance(bed, Gaussian):
            return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        z1, z2 = z.unbind(-1)
        squares = z2.square() + (z1 - bed.u * z2).square()
        return -0.5 * squares - math.log(2 * math.pi)

    total = bed_mean(bed, 1, lambda p, q: (p - log_prior(bed)).mean(0) - weight * kl(p, q))
    parameters = dict(bed.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(total, parameters.values()), strict=True))


# ------------------------------------------------------------------------------------ KL weight

BEDS = {"one latent": Gaussian, "two latents, not mean-field": Chain}
OBJECTIVES = {"ELBO": ELBO, "analytic": AnalyticELBO}


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("build", BEDS.values(), ids=BEDS)
def test_a_kl_weight_weighs_the_gradient_and_leaves_the_bound(build, objective, weight):
    bed = build()
    bound, _ = exact(bed, 1, mean)
    reference = (bound, gradient_of_weighted(bed, weight))
    assert distance(expected(objective(), weighed(build(), weight)), reference) < 1e-10
    # Mutants: a weight 0.1 % off, and one that only the model has.
    assert distance(expected(objective(), weighed(build(), weight + 1e-3)), reference) > 1e-5
    if weight != 1:
        assert (
            distance(expected(objective(), weighed(build(), weight, guide=1.0)), reference) > 0.01
        )


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_kl_weight_on_latents_without_reparameterisation(weight):
    bed = Bits()
    bound, _ = exact(bed, 1, mean)
    reference = (bound, gradient_of_weighted(bed, weight))
    assert distance(expected(AnalyticELBO(), weighed(Bits(), weight)), reference) < 1e-10
    assert distance(expected(AnalyticELBO(), weighed(Bits(), weight + 1e-3)), reference) > 1e-5


def test_weights_multiply_and_may_be_for_some_sites_only():
    bed = Chain()
    both = KLWeight(0.5)(KLWeight(0.2, sites=["z2"])(bed.model))
    program = Program(both, KLWeight(0.5)(bed.guide))
    with program.running():
        terms = site_terms(program, Probe(program, bed.x).layout, bed.x)
    assert {n: float(s) for n, s in terms.scale_p.items()} == {"z2": 0.1, "z1": 0.5, "x": 1.0}
    assert {n: float(s) for n, s in terms.scale_q.items()} == {"z1": 0.5, "z2": 0.5}


def test_pyros_own_loss_includes_the_weight_and_ours_does_not():
    for weight, change in ((1.0, False), (0.25, True)):
        bed = weighed(Gaussian(), weight)
        plain = Gaussian()
        losses = []
        for objective in (Trace_ELBO(max_plate_nesting=1), ELBO()):
            for program in (bed, plain):
                torch.manual_seed(0)
                losses.append(objective.loss(program.model, program.guide, plain.x))
        assert (losses[0] != pytest.approx(losses[1])) == change
        assert losses[2] == losses[3] == pytest.approx(losses[1])


def test_a_weight_of_zero_goes_where_pyros_scale_does_not():
    with pytest.raises(ValueError, match="scale"):
        poutine.scale(scale=0.0)
    assert KLWeight(0.0).weight == 0.0


@pytest.mark.parametrize("weight", [-1.0, math.nan, float64(-0.1), Scheduled(Linear(1.0, -1.0))])
def test_negative_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"weight=(-|nan)"):
        KLWeight(weight)


def test_a_controller_needs_an_objective():
    with pytest.raises(TypeError, match=r"use the objective BetaVAE\(beta=Controlled"):
        KLWeight(Controlled(3.0))


# ------------------------------------------------------------------------- any program, any place

HANDLERS = {
    "KL weight": lambda pair: KLWeight(0.7),
    "sticking the landing": lambda pair: StickingTheLanding(),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS)
def test_a_handler_leaves_the_bound_of_every_program(build, handler):
    def loss(wrap):
        pyro.clear_param_store()
        torch.manual_seed(1)
        pair = build()
        model, guide = wrap(pair, pair.model), wrap(pair, pair.guide)
        torch.manual_seed(5)
        return ELBO(2).loss(model, guide, *pair.args)

    plain = loss(lambda pair, function: function)
    assert loss(lambda pair, function: handler(pair)(function)) == plain
    with handler(None):
        assert loss(lambda pair, function: function) == plain


@pytest.mark.parametrize(
    "wrap",
    [KLWeight(0.5), KLWeight(1.0).__call__, poutine.scale],
    ids=["handler", "its call", "of Pyro"],
)
def test_a_wrapped_program_keeps_its_modules(wrap):
    for build in PROGRAMS.values():
        pair = build()
        wrapped = wrap(pair.model, scale=0.5) if wrap is poutine.scale else wrap(pair.model)
        plain, found = Program(pair.model, pair.guide), Program(wrapped, pair.guide)
        assert found.modules == plain.modules
        assert found.reachable == plain.reachable
        if wrap is not poutine.scale:
            assert inspect.signature(wrapped) == inspect.signature(pair.model)


def test_wrapped_programs_train_in_fit():
    class Small(PyroModule):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            loc, raw = self.encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    small = Small()
    before = [p.detach().clone() for p in small.parameters()]
    guide = StickingTheLanding()(KLWeight(0.5)(small.guide))
    done = fit(
        KLWeight(0.5)(small.model), guide, torch.randn(40, 3), objective=ELBO(), epochs=2,
        batch_size=20, device="cpu",
    )  # fmt: skip
    assert done.epochs == 2
    assert not any(map(torch.equal, before, small.parameters()))


@pytest.mark.filterwarnings("ignore:Frozen. the module Linear has no part")
def test_recorded_steps_have_the_bits_of_eager_ones():
    def run(engine):
        torch.manual_seed(3)
        bed = Gaussian()
        weight = Scheduled(Linear(0.0, 1.0))
        frozen = nn.Linear(2, 2)
        model = Frozen(frozen)(KLWeight(weight)(bed.model))
        guide = StickingTheLanding()(KLWeight(weight)(bed.guide))
        svi = SVI(model, guide, partial(torch.optim.Adam, lr=0.1), ELBO(3), engine=engine)
        losses = []
        for step in range(6):
            weight.advance(step / 6)
            losses.append(svi.step(bed.x))
        return losses, [p.tolist() for p in bed.parameters()], svi.recorded

    found, expected = run("recorded"), run("eager")
    assert found[:2] == expected[:2]
    assert (found[2], expected[2]) == (True, False)


# ------------------------------------------------------------------------- sticking the landing


class AtThePosterior(nn.Module):
    """A model whose guide can be its exact posterior; a parameter shifts the guide from there."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.full((2,), shift, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.w = float64([0.8, -1.5])

    def prior(self, x):
        return dist.Normal(torch.zeros_like(self.w), 1.0).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(z), obs=x)

    def likelihood(self, z):
        return dist.Normal(z * self.w, 0.5).to_event(1)

    def normal_posterior(self, x):
        precision = 1 + self.w.square() / 0.25
        loc = x * self.w / 0.25 / precision
        return dist.Normal(loc + self.shift, precision.rsqrt() * self.log_scale.exp())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.normal_posterior(x).to_event(1))


class Flow(AtThePosterior):
    """The same in other coordinates: z = f(u), for an autoregressive flow f that prior and guide
    share; its parameters are trained, too."""

    def __init__(self, shift=0.0):
        super().__init__(shift)
        flow = transforms.affine_autoregressive(2, hidden_dims=[4])
        self.flow = flow.double()

    def prior(self, x):
        return dist.TransformedDistribution(super().prior(x), [self.flow])

    def likelihood(self, z):
        return dist.Normal(self.flow.inv(z) * self.w, 0.5).to_event(1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            base = self.normal_posterior(x).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


class Mixture(AtThePosterior):
    """A mixture of two normals as prior and, so, as posterior."""

    locs = float64([[-1.0, 0.5], [1.0, 2.0]])
    scales = float64([[0.7, 1.0], [1.2, 0.4]])
    logits = float64([0.3, -0.4])

    def prior(self, x):
        return dist.MixtureOfDiagNormals(self.locs, self.scales, self.logits)

    def guide(self, x):
        precision = self.scales**-2 + self.w.square() / 0.25
        locs = (self.locs / self.scales**2 + x.unsqueeze(-2) * self.w / 0.25) / precision
        spread = (self.scales.square() * self.w.square() + 0.25).sqrt()
        log_evidence = dist.Normal(self.locs * self.w, spread).log_prob(x.unsqueeze(-2)).sum(-1)
        scales = precision.rsqrt() * self.log_scale.exp()
        with pyro.plate("data", len(x)):
            q = dist.MixtureOfDiagNormals(
                locs + self.shift, scales.expand_as(locs), self.logits + log_evidence
            )
            pyro.sample("z", q)


POSTERIORS = {"normal": AtThePosterior, "flow": Flow, "mixture": Mixture}
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient_of_guide(program, guide, num_particles=3):
    torch.manual_seed(1)
    own = [program.shift, program.log_scale]
    loss = ELBO(num_particles).differentiable_loss(program.model, guide, X)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)])


@pytest.mark.parametrize("build", POSTERIORS.values(), ids=POSTERIORS)
def test_the_gradient_vanishes_at_the_exact_posterior(build):
    program = build()
    assert gradient_of_guide(program, StickingTheLanding()(program.guide)).abs().max() < 1e-10
    # Without it, or away from the posterior, it does not.
    assert gradient_of_guide(program, program.guide).abs().max() > 0.1
    program = build(shift=1e-3)
    assert gradient_of_guide(program, StickingTheLanding()(program.guide)).abs().max() > 1e-4


@pytest.mark.parametrize("build", BEDS.values(), ids=BEDS)
def test_sticking_the_landing_keeps_the_expectation_of_one_particle(build):
    bed = build()
    reference = exact(bed, 1, mean)
    bed.guide = StickingTheLanding()(bed.guide)
    assert distance(expected(ELBO(), bed), reference) < 1e-10
    # A mutant: the score of another density would be left out with an expectation of its own.
    lost = build()
    lost.guide = LosesDensity()(lost.guide)
    assert distance(expected(ELBO(), lost), reference) > 1e-3


def test_sticking_the_landing_is_biased_for_several_particles():
    bed = Gaussian(num_nodes=16)
    reference = exact(bed, 2, lambda log_w: log_w.logsumexp(0) - math.log(2))
    bed.guide = StickingTheLanding()(bed.guide)
    value, gradient = expected(IWAE(2), bed)
    assert (value - reference[0]).abs() < 1e-10
    # The guide's gradient alone: 1e-10 where the model's is compared.
    assert max((gradient[n] - reference[1][n]).abs().max() for n in bed.of_model) < 1e-9
    assert max((gradient[n] - reference[1][n]).abs().max() for n in bed.of_guide) > 1e-4


def test_latents_without_reparameterisation_keep_their_score():
    bed = Bits()
    reference = exact(bed, 1, mean)
    bed.guide = StickingTheLanding()(bed.guide)
    assert distance(expected(ELBO(), bed), reference) < 1e-10


class LosesDensity(poutine.messenger.Messenger):
    """Cuts all of log q out of the graph, the way through z as well."""

    def _pyro_sample(self, msg):
        if not msg["is_observed"] and not poutine.util.site_is_subsample(msg):
            fn = msg["fn"]
            msg["fn"] = _NoGradient(fn)


class _NoGradient(dist.TorchDistribution):
    has_rsample = True

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

    def rsample(self, *args):
        return self.inner.rsample(*args)

    def log_prob(self, value):
        return self.inner.log_prob(value).detach()

    def expand(self, shape, _instance=None):
        return _NoGradient(self.inner.expand(shape))


# ------------------------------------------------------------------------------------- freezing


def gradients(pair, model, guide):
    program = Program(model, guide)
    torch.manual_seed(0)
    with program.running():
        loss = ELBO().differentiable_loss(model, guide, *pair.args)
    names, parameters = zip(*program.parameters().items(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


def test_a_frozen_part_has_no_gradient_and_the_others_have_theirs():
    pair = PROGRAMS["VAE, MLP"]()
    vae = pair.model.__self__
    plain = gradients(pair, pair.model, pair.guide)
    for part in ("likelihood", "posterior"):
        freeze = Frozen(getattr(vae, part))
        found = gradients(pair, freeze(pair.model), freeze(pair.guide))
        assert found.keys() == plain.keys()
        for name, gradient in found.items():
            if name.startswith(part):
                assert gradient is None
            else:
                assert torch.equal(gradient, plain[name])
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in vae.parameters())


def test_pyro_modules_can_be_frozen_and_come_back_from_an_error():
    pair = PROGRAMS["two PyroModules"]()
    found = gradients(pair, Frozen(pair.model)(pair.model), pair.guide)
    assert [name for name, gradient in found.items() if gradient is None] == [
        name for name in found if name.startswith("0.")
    ]
    with pytest.raises(ZeroDivisionError), Frozen(pair.model):
        1 / 0  # noqa: B018
    assert all(p.requires_grad for p in pair.model.parameters())
    with pytest.raises(ValueError, match="none of these modules has a parameter"):
        Frozen(nn.ReLU())


def test_training_leaves_a_frozen_part_as_it_is():
    for engine in ("eager", "recorded"):
        pair = PROGRAMS["VAE, MLP"]()
        vae = pair.model.__self__
        svi = SVI(
            Frozen(vae.likelihood)(vae.model), vae.guide, partial(torch.optim.Adam, lr=0.1),
            ELBO(), engine=engine,
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in vae.named_parameters()}
        for _ in range(4):
            svi.step(*pair.args)
        assert svi.recorded == (engine == "recorded")
        for name, parameter in vae.named_parameters():
            assert torch.equal(parameter, before[name]) == name.startswith("likelihood")


def test_a_module_of_plain_functions_can_be_frozen():
    pair = PROGRAMS["functions, pyro.module"]()
    decoder, encoder = (inspect.getclosurevars(f).nonlocals for f in (pair.model, pair.guide))
    decoder, encoder = decoder["decoder"], encoder["encoder"]
    before = [p.detach().clone() for p in (decoder.weight, encoder.weight)]
    svi = SVI(
        Frozen(decoder)(pair.model), pair.guide, partial(torch.optim.Adam, lr=0.1), ELBO()
    )  # fmt: skip
    for _ in range(2):
        svi.step(*pair.args)
    assert torch.equal(decoder.weight, before[0])
    assert not torch.equal(encoder.weight, before[1])
    assert isinstance(decoder.weight, nn.Parameter)


# ---------------------------------------------------------------------------------- temperature

RELAXED = {
    "binary": partial(dist.RelaxedBernoulli, logits=float64([0.4, -1.0, 2.0])),
    "binary, hard": partial(dist.RelaxedBernoulliStraightThrough, logits=float64([0.4, -1.0, 2.0])),
    "categorical": partial(dist.RelaxedOneHotCategorical, logits=float64([0.4, -1.0, 2.0])),
    "categorical, hard": partial(
        dist.RelaxedOneHotCategoricalStraightThrough, logits=float64([0.4, -1.0, 2.0])
    ),
}


def drawing(relaxed, temperature):
    def guide(x):
        fn = relaxed(float64(temperature))
        with pyro.plate("data", len(x)):
            return pyro.sample("z", fn.to_event(1) if not fn.event_shape else fn)

    return guide


@pytest.mark.parametrize("relaxed", RELAXED.values(), ids=RELAXED)
def test_a_temperature_is_that_of_the_distribution(relaxed):
    moving = Scheduled(Linear(0.3, 0.1))
    moving.advance(0.5)
    for temperature, number in ((0.25, 0.25), (float64(1.5), 1.5), (moving, 0.2)):
        traces = []
        for guide in (
            Temperature(temperature)(drawing(relaxed, 0.9)),
            drawing(relaxed, number),
        ):
            torch.manual_seed(0)
            traces.append(poutine.trace(guide).get_trace(X))
            traces[-1].compute_log_prob()
        found, wanted = (trace.nodes["z"] for trace in traces)
        torch.testing.assert_close(found["value"], wanted["value"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found["log_prob"], wanted["log_prob"], rtol=1e-5, atol=1e-5)
        assert type(found["fn"]) is type(wanted["fn"])


def test_a_temperature_needs_a_relaxed_site():
    bed = Gaussian()
    with pytest.raises(ValueError, match="the program has no relaxed latent site"):
        Temperature(0.5)(bed.guide)(bed.x)
    with pytest.raises(ProgramError, match="site 'z' has a Independent, which has no temperature"):
        Probe(Program(bed.model, Temperature(0.5, sites=["z"])(bed.guide)), bed.x)
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"temperature={wrong:g}"):
            Temperature(wrong)
