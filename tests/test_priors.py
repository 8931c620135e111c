"""Priors: mixtures in little memory, posteriors averaged, and what they are built for."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from bits import same
from laws import Pair, kolmogorov_bound
from pyro.infer import Trace_ELBO
from quick import some
from recorded import both
from runs import final
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae import VAE, fit
from pyro_vae.components import (
    MLP,
    AffineCoupling,
    AutoregressiveBernoulli,
    Bernoulli,
    Conditional,
    Convolutional,
    DiagonalNormal,
    InverseAutoregressive,
    MaskedAutoregressive,
    MixtureOfNormals,
    NeuralSpline,
    UniformSphere,
    VampPrior,
    learned,
)
from pyro_vae.distributions import DiagonalNormalMixture, HypersphericalUniform
from pyro_vae.engine import checkpoint

small = partial(MLP, hidden=(5,))


def rows(num: int = 30, dims: int = 4):
    return torch.randint(0, 2, (num, dims), generator=torch.Generator().manual_seed(7)).float()


def vamp_vae(posterior=DiagonalNormal, latent=(3,), num: int = 6, x=None, **parts) -> VAE:
    prior = partial(VampPrior, num_pseudo_inputs=num)
    x = rows() if x is None else x
    options = {"network": small, **parts}
    return VAE.assemble(
        tuple(x.shape[1:]), latent, prior=prior, posterior=posterior, data=x, **options
    )


# ---------------------------------------------------------------------------- mixtures


def mixtures(dtype, *batch: int, event_shape=(3,), scale: float = 0.05):
    """Return ours and torch's, with components that are narrow and far from zero."""
    loc = 3 * torch.randn(*batch, 7, *event_shape, dtype=dtype) + 5
    scale = scale + torch.rand(*batch, 7, *event_shape, dtype=dtype)
    logits = torch.randn(*batch, 7, dtype=dtype)
    ours = DiagonalNormalMixture(logits, loc, scale, event_dim=len(event_shape))
    parts = dist.Normal(loc, scale).to_event(len(event_shape))
    return ours, dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


@pytest.mark.parametrize("event_shape", [(3,), (2, 2)])
@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_a_mixture_is_that_of_torch(dtype, close, batch, event_shape) -> None:
    ours, reference = mixtures(dtype, *batch, event_shape=event_shape)
    z = reference.sample((5,))
    expected = reference.log_prob(z)
    torch.testing.assert_close(ours.log_prob(z), expected, rtol=close, atol=10 * close)
    torch.testing.assert_close(ours.mean, reference.mean)
    torch.testing.assert_close(ours.variance, reference.variance, rtol=1e-4, atol=1e-4)
    assert ours.log_prob(z).dtype == dtype
    wide, draws = ours.expand((2, *batch)), reference.expand((2, *batch)).sample((3,))
    assert wide.sample((3,)).shape == draws.shape
    torch.testing.assert_close(wide.log_prob(draws), ours.log_prob(draws))


def test_narrow_components_are_exact_in_float32() -> None:
    # Multiplied out in float32, the squares would be off by hundreds of nats.
    ours, _ = mixtures(torch.float32, scale=0.0)
    scale = torch.full_like(ours.scale, 1e-3)
    narrow = DiagonalNormalMixture(ours.logits, ours.loc, scale)
    z = narrow.sample((50,))
    parts = dist.Normal(ours.loc.double(), scale.double()).to_event(1)
    weights = dist.Categorical(logits=ours.logits.double())
    expected = dist.MixtureSameFamily(weights, parts).log_prob(z.double())
    torch.testing.assert_close(narrow.log_prob(z).double(), expected, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(narrow.log_prob(z), expected.float(), rtol=1e-4, atol=1e-3)


def test_a_mixtures_gradients_are_those_of_torch() -> None:
    start, _ = mixtures(torch.float64, 2)
    z, *leaves = (
        t.requires_grad_() for t in (start.sample(), start.logits, start.loc, start.scale)
    )
    ours, (logits, loc, scale) = DiagonalNormalMixture(*leaves), leaves
    parts = dist.Normal(loc, scale).to_event(1)
    reference = dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
    leaves = [z, *leaves]
    found = torch.autograd.grad(ours.log_prob(z).sum(), leaves)
    expected = torch.autograd.grad(reference.log_prob(z).sum(), leaves)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_far_away_leave_the_near_one_as_if_alone(dtype) -> None:
    loc = torch.tensor([[0.0], [1e4]], dtype=dtype, requires_grad=True)
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    z = torch.tensor([[0.5], [1e4 - 3]], dtype=dtype)
    log_p = DiagonalNormalMixture(logits, loc, torch.ones(2, 1, dtype=dtype)).log_prob(z)
    alone = dist.Normal(loc.flatten(), 1.0).log_prob(z.flatten()) - math.log(2)
    torch.testing.assert_close(log_p, alone)
    found = torch.autograd.grad(log_p.sum(), [loc, logits])
    torch.testing.assert_close(found[0].flatten(), torch.tensor([0.5, -3.0], dtype=dtype))
    torch.testing.assert_close(found[1], torch.zeros(2, dtype=dtype))


def test_components_start_apart_and_stay_where_a_checkpoint_puts_them() -> None:
    prior = learned(MixtureOfNormals((2,), num_components=4))
    assert prior().loc.unique(dim=0).shape == (4, 2)
    other = learned(MixtureOfNormals((2,), num_components=4))
    z = prior().sample((5,))
    assert not torch.equal(prior().log_prob(z), other().log_prob(z))
    other.load_state_dict(prior.state_dict())
    torch.testing.assert_close(prior().log_prob(z), other().log_prob(z))


class _Largest(TorchDispatchMode):
    """Note the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("kind", ["mixture", "VampPrior", "torch's"])
def test_memory_grows_with_data_times_components(kind: str) -> None:
    num_rows, num_parts, num_dims = 64, 60, 24
    z = torch.randn(num_rows, num_dims, requires_grad=True)
    if kind == "VampPrior":
        prior = vamp_vae(latent=(num_dims,), num=num_parts).prior
    else:
        prior = learned(MixtureOfNormals((num_dims,), num_components=num_parts))
    with _Largest() as largest:
        p = prior()
        if kind == "torch's":
            parts = dist.Normal(p.loc, p.scale).to_event(1)
            p = dist.MixtureSameFamily(dist.Categorical(logits=p.logits), parts)
        p.expand((num_rows,)).log_prob(z).sum().backward()
    times = num_dims if kind == "torch's" else 1
    assert largest.numel == num_rows * num_parts * times


# ---------------------------------------------------------------------------- VampPrior

POSTERIORS = {
    "DiagonalNormal": DiagonalNormal,
    "InverseAutoregressive": partial(InverseAutoregressive, hidden_dims=[6], num_context=2),
    "MixtureOfNormals": partial(MixtureOfNormals, num_components=2),
    "Bernoulli": Bernoulli,
}


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS.keys())
def test_a_vamp_prior_is_the_average_of_the_posteriors(posterior) -> None:
    vae = vamp_vae(posterior).double()
    inputs = vae.prior.pseudo_inputs()
    assert inputs.shape == (6, 4)
    prior = vae.prior()
    z = prior.expand((5,)).sample((2,))
    assert z.shape == (2, 5, 3)
    each = torch.stack([vae.posterior(u).log_prob(z) for u in inputs])
    torch.testing.assert_close(prior.log_prob(z), each.exp().mean(0).log())
    assert prior.expand((5,)).log_prob(z).shape == (2, 5)
    assert prior.event_shape == (3,)
    assert prior.support.is_discrete == (posterior is Bernoulli)


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS.keys())
def test_samples_of_a_vamp_prior_agree_with_its_density(posterior) -> None:
    # By the log-density itself, of draws of posteriors in turn: no outlier in 10,000 runs.
    num = 3000
    vae = vamp_vae(posterior)
    with torch.no_grad():
        vae.prior.raw_inputs.mul_(3)
        found = vae.prior().log_prob(vae.prior().sample((num,)))
        in_turn = vae.prior.pseudo_inputs().repeat(10 * num // 6, 1)
        expected = vae.prior().log_prob(vae.posterior(in_turn).sample())
    order = expected.sort().values
    rank = torch.searchsorted(order, found.sort().values, right=True) / len(order)
    distance = (rank - torch.linspace(0, 1, num)).abs().max()
    assert distance < 1.2 * kolmogorov_bound(num, false_alarm=1e-4) or posterior is Bernoulli
    if posterior is Bernoulli:
        levels = expected.unique()
        shares = [(sample[:, None] >= levels).float().mean(0) for sample in (found, expected)]
        assert (shares[0] - shares[1]).abs().max() < 1.2 * kolmogorov_bound(num, false_alarm=1e-4)


def test_pseudo_inputs_start_at_rows_of_the_data_and_stay_in_its_range() -> None:
    x = torch.rand(50, 3) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0.0, -50.0, 2.0])
    vae = vamp_vae(x=x, num=8)
    inputs = vae.prior.pseudo_inputs()
    assert bool((inputs[:, 2] == 2).all())
    width = x.amax(0) - x.amin(0)
    distance = ((inputs[:, None] - x) / width.clamp(min=1e-9)).abs().amax(-1).amin(1)
    assert distance.max() < 0.1
    with torch.no_grad():
        vae.prior.raw_inputs.mul_(1e4)
    far = vae.prior.pseudo_inputs()
    assert bool((far >= x.amin(0)).all())
    assert bool((far <= x.amax(0)).all())


def test_pseudo_inputs_of_rows_with_missing_numbers_are_whole() -> None:
    x = torch.rand(20, 3)
    x[::2, 0], x[:, 2] = math.nan, math.nan
    inputs = vamp_vae(x=x).prior.pseudo_inputs()
    assert bool(inputs.isfinite().all())
    assert x[1::2, 0].min() <= inputs[:, 0].min()
    assert inputs[:, 0].max() <= x[1::2, 0].max()


def test_more_pseudo_inputs_than_rows_differ() -> None:
    vae = vamp_vae(x=rows(3), num=10)
    assert vae.prior.pseudo_inputs().unique(dim=0).shape == (10, 4)


def test_pseudo_images_share_one_range() -> None:
    x = torch.randint(0, 17, (20, 1, 5, 4)).float()
    x[:, :, 0] = 0.0  # black in every image
    vae = vamp_vae(x=x, network=partial(Convolutional, channels=(2,), hidden=4))
    inputs = vae.prior.pseudo_inputs()
    assert inputs.shape == (6, 1, 5, 4)
    assert inputs.min() >= 0
    assert inputs.max() <= 16
    vae.prior().log_prob(torch.randn(3)).backward()
    assert bool((vae.prior.raw_inputs.grad != 0).all())


def test_a_vamp_prior_shares_the_encoder_and_registers_it_once() -> None:
    vae = vamp_vae()
    own = {"prior.raw_inputs", "prior.low", "prior.width"}
    assert {name for name in vae.state_dict() if name.startswith("prior.")} == own
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        twin.posterior.offset.add_(1.0)
    z = torch.zeros(3)
    assert not torch.equal(twin.prior().log_prob(z), vae.prior().log_prob(z))
    twin.load_state_dict(vae.state_dict())
    assert torch.equal(twin.prior().log_prob(z), vae.prior().log_prob(z))


def test_a_vamp_prior_runs_the_encoder_once_for_every_call() -> None:
    vae, sizes = vamp_vae(), []
    vae.posterior.network.register_forward_hook(lambda *args: sizes.append(len(args[1][0])))
    Trace_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, rows(5))
    assert sorted(sizes) == [5, 6]


@pytest.mark.parametrize("prior", ["vamp", "mixture", "flow"])
def test_every_parameter_of_a_learned_prior_gets_a_gradient(prior: str) -> None:
    if prior == "vamp":
        vae = vamp_vae()
    else:
        family = MixtureOfNormals if prior == "mixture" else MaskedAutoregressive
        vae = VAE.assemble((4,), (3,), prior=family, network=small, data=rows())
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(vae.model, vae.guide, rows(8)).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_a_vamp_prior_resumes_to_the_same_bits(tmp_path, monkeypatch) -> None:
    def train(out, **options):
        torch.manual_seed(0)
        vae = vamp_vae(num=4)
        settings = {"epochs": 2, "batch_size": 10, "checkpoint_seconds": 0.0, **options}
        fit(vae, rows(), out=out, **settings)
        return vae

    def dies(*args, **options):
        path = save(*args, **options)
        if options["step"] == 4:
            raise SystemExit
        return path

    whole = train(tmp_path / "whole")
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", dies)
    with pytest.raises(SystemExit):
        train(tmp_path / "broken")
    monkeypatch.undo()
    resumed = train(tmp_path / "broken", resume=True)
    assert same(final(tmp_path / "broken"), final(tmp_path / "whole"))
    assert same(dict(resumed.state_dict()), dict(whole.state_dict()))


# ---------------------------------------------------------------------------- the same bits

flow = {"hidden_dims": [4], "num_context": 1}
one_step = {**flow, "num_flows": 1}
RECORDED_PARTS = {
    "sequential inverses": {
        "prior": partial(InverseAutoregressive, **one_step),
        "posterior": partial(MaskedAutoregressive, **one_step),
    },
    "IAF and MAF": {
        "prior": partial(MaskedAutoregressive, **one_step),
        "posterior": partial(InverseAutoregressive, **flow),
    },
    "spline and coupling": {
        "prior": partial(NeuralSpline, num_bins=2, **one_step),
        "posterior": partial(AffineCoupling, **{**flow, "num_flows": 2}),
    },
    "mixture": {"prior": partial(MixtureOfNormals, num_components=3)},
    "VampPrior": {"prior": partial(VampPrior, num_pseudo_inputs=3)},
    "VampPrior of flows": {
        "prior": partial(VampPrior, num_pseudo_inputs=3),
        "posterior": partial(InverseAutoregressive, **one_step),
    },
    "autoregressive Bernoulli": {
        "prior": partial(AutoregressiveBernoulli, **flow),
        "posterior": Bernoulli,
    },
}


@pytest.mark.parametrize("name", some(RECORDED_PARTS, "autoregressive Bernoulli"))
def test_a_recorded_step_gives_the_bits_of_the_eager_one(name) -> None:
    parts = RECORDED_PARTS[name]

    def build() -> Pair:
        vae = VAE.assemble((4,), (2,), network=partial(MLP, hidden=(3,)), data=rows(), **parts)
        return Pair(vae.model, vae.guide, (rows(4),))

    found = both(build, partial(Trace_ELBO, max_plate_nesting=1), sizes=[4] * 2)
    assert found.replayed == [False, True]
    assert len(set(found.losses)) == 2


# ---------------------------------------------------------------------------- discrete, spheres

BINARY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()


def autoregressive(*batch: int, event_shape=(4,)):
    family = AutoregressiveBernoulli(event_shape, hidden_dims=[6], num_context=2).double()
    for parameter in family.parameters():
        nn.init.normal_(parameter)
    return family(torch.randn(*batch, *family.raw_shape).double())


@pytest.mark.parametrize("event_shape", [(4,), (2, 2)])
def test_autoregressive_masses_sum_to_one_and_samples_have_them(event_shape) -> None:
    # A false alarm in 10,000 runs.
    num = 4000
    distribution = autoregressive(3, event_shape=event_shape)
    masses = distribution.log_prob(BINARY.reshape(16, 1, *event_shape)).exp()
    torch.testing.assert_close(masses.sum(0), torch.ones(3).double())
    draws = distribution.sample((num,)).reshape(num, 3, 4)
    found = (draws[:, :, None] == BINARY).all(-1).double().mean(0)
    bound = kolmogorov_bound(num, false_alarm=1e-4)
    assert (found.cumsum(1) - masses.T.cumsum(1)).abs().max() < bound
    assert distribution.expand([5, 3]).sample((2,)).shape == (2, 5, 3, *event_shape)
    assert distribution.support.is_discrete


def test_autoregressive_entries_do_not_see_those_after_them() -> None:
    distribution = autoregressive()
    first = distribution.log_prob(BINARY).exp().reshape(2, 8).sum(1)
    family_logit = distribution._all_logits(torch.zeros(4).double())[0]
    torch.testing.assert_close(first[1], family_logit.sigmoid())


def test_autoregressive_bits_start_at_the_means_of_data() -> None:
    part = Conditional(AutoregressiveBernoulli((2, 2), hidden_dims=[6], num_context=3))
    part.family.network.layers[-1].weight.data.zero_()
    part.family.network.layers[-1].bias.data.zero_()
    data = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]]).repeat(2, 1, 1)
    part.adapt_outputs(data)
    ones = part().log_prob(torch.ones(2, 2)).exp().detach()
    assert float(ones) == pytest.approx(0.001 * 0.999 * 0.999 * 0.5, rel=1e-4)


@pytest.mark.parametrize(("num_dims", "area"), [(2, 2 * math.pi), (3, 4 * math.pi)])
def test_the_density_on_a_sphere_is_one_over_its_area(num_dims: int, area: float) -> None:
    prior = UniformSphere((num_dims,)).double()()
    z = prior.sample((5,))
    torch.testing.assert_close(prior.log_prob(z), torch.full((5,), -math.log(area)).double())
    torch.testing.assert_close(prior.entropy(), torch.tensor(math.log(area)).double())


# The distribution function of one coordinate.
COORDINATE = {
    2: lambda t: 0.5 + torch.asin(t) / math.pi,
    3: lambda t: (1 + t) / 2,
    5: lambda t: 0.5 + 0.75 * (t - t**3 / 3),
}


@pytest.mark.parametrize("num_dims", COORDINATE)
def test_samples_on_a_sphere_are_uniform(num_dims: int) -> None:
    # A false alarm in 10,000 runs for each of the coordinates.
    num = 4000
    prior = HypersphericalUniform(torch.zeros(num_dims).double())
    z = prior.sample((num,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(num).double())
    expected = COORDINATE[num_dims](z.sort(0).values)
    distance = (expected - torch.linspace(0, 1, num).double()[:, None]).abs().max()
    assert distance < kolmogorov_bound(num, false_alarm=1e-4)
    torch.testing.assert_close(prior.variance.sum(), torch.tensor(1.0).double())


def test_spheres_stand_side_by_side() -> None:
    prior = UniformSphere((3, 4))()
    z = prior.expand([5]).rsample((2,))
    assert z.shape == (2, 5, 3, 4)
    assert prior.event_shape == (3, 4)
    area = 2 * math.pi**2
    torch.testing.assert_close(prior.log_prob(z), torch.full((2, 5), -3 * math.log(area)))
    with pytest.raises(ValueError, match="support"):
        prior.log_prob(2 * z)


# ---------------------------------------------------------------------------- bad input


def encoder(latent: int = 3, dims: int = 4) -> Conditional:
    return Conditional(DiagonalNormal((latent,)), context_shape=(dims,), network=small)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (partial(MixtureOfNormals, (2,), num_components=0), "num_components=0"),
        (partial(VampPrior, (2,), num_pseudo_inputs=0), "num_pseudo_inputs=0"),
        (lambda: VampPrior((3,))(), "not met"),
        (lambda: VampPrior((3,)).start_from_posterior(encoder(), None), "data=None"),
        (lambda: VampPrior((2,)).start_from_posterior(encoder(), rows()), r"\(2,\).*\(3,\)"),
        (lambda: VampPrior((3,)).start_from_posterior(encoder(dims=5), rows()), r"\(4,\).*\(5,\)"),
        (lambda: VampPrior((3,)).start_from_posterior(encoder(), rows(0)), "0 rows"),
        (partial(AutoregressiveBernoulli, (1,)), r"event_shape=\(1,\)"),
        (partial(AutoregressiveBernoulli, (4,), hidden_dims=[3]), r"hidden_dims=\(3,\)"),
        (partial(AutoregressiveBernoulli, (4,), num_context=-1), "num_context=-1"),
        (lambda: AutoregressiveBernoulli((4,))(), "raw parameters"),
        (partial(UniformSphere, (3, 1)), r"event_shape=\(3, 1\)"),
        (lambda: MixtureOfNormals((4,))(), "raw parameters"),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_an_average_of_flows_is_the_same_in_blocks(monkeypatch) -> None:
    posterior = Conditional(InverseAutoregressive((3,), num_flows=1), context_shape=(4,),
                            network=partial(MLP, hidden=(5,)))  # fmt: skip
    prior = VampPrior((3,), num_pseudo_inputs=6)
    prior.start_from_posterior(posterior, torch.randn(10, 4))
    z = torch.randn(2, 7, 3, requires_grad=True)
    parameters = [z, *posterior.parameters(), *prior.parameters()]
    found = []
    for most in (2**22, 4 * 6 * 3):
        monkeypatch.setattr("pyro_vae.distributions.mixtures._PAIRED_NUMBERS", most)
        log_p = prior().log_prob(z)
        found.append([log_p, *torch.autograd.grad(log_p.sum(), parameters)])
    assert found[0][0].shape == (2, 7)
    for whole, in_blocks in zip(*found, strict=True):
        torch.testing.assert_close(in_blocks, whole, rtol=1e-4, atol=1e-5)
