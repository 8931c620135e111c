"""log p(x) and the bound against a linear-Gaussian program, whose every number is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import PROGRAMS
from linear import LinearGaussian
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.evaluation import elbo, importance_sampling, likelihood, log_likelihood
from pyro_vae.evaluation.batching import pairs_at_once
from pyro_vae.inference import Probe, Program, ProgramError


class OneAtATime(LinearGaussian):
    """The same, but its guide refuses a dimension of particles, as BatchNorm does."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            fn = dist.Normal(x @ self.gain.T + self.offset, self.spread).to_event(1)
            z = pyro.sample("z", fn)
            assert z.dim() == 2 or _refuse()


def _refuse():
    raise RuntimeError("one sample at a time")


@pytest.fixture
def x():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double() * 1.5


@pytest.mark.parametrize(
    "program", [LinearGaussian, pytest.param(OneAtATime, marks=pytest.mark.slow)]
)
def test_importance_sampling_finds_the_exact_log_p_within_its_stated_error(program, x):
    vae = program()
    found = importance_sampling(vae.model, vae.guide, x, num_samples=2000)
    exact = vae.log_p(x)
    assert found.monte_carlo_error < 0.01
    assert abs(found.mean - exact.mean().item()) < 5 * found.monte_carlo_error
    assert found.mean.standard_error == pytest.approx(
        (exact.std() / math.sqrt(40)).item(), rel=0.05
    )
    per_datum = (1 / found.effective_sample_size - 1 / 2000).sqrt()
    assert ((found.log_p - exact).abs() < 5 * per_datum).all()
    assert found.log_p.dtype == torch.float64


def test_stated_monte_carlo_error_is_the_spread_over_seeds(x):
    vae = LinearGaussian()
    runs = [
        importance_sampling(vae.model, vae.guide, x, num_samples=200, seed=s) for s in range(40)
    ]
    spread = torch.tensor([run.mean for run in runs]).std().item()
    stated = torch.tensor([run.monte_carlo_error for run in runs]).median().item()
    # 40 draws give the spread to 11 percent, and heavy-tailed weights hide some of theirs.
    assert stated == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize("num_samples", [1, 2, 7, 10])
def test_at_the_exact_posterior_every_estimate_is_exact(num_samples, x):
    vae = LinearGaussian(num_latents=1, exact=True)
    found = importance_sampling(vae.model, vae.guide, x, num_samples=num_samples, max_pairs=3)
    torch.testing.assert_close(found.log_p, vae.log_p(x), rtol=0, atol=1e-10)
    ones = torch.ones_like(found.log_p)
    torch.testing.assert_close(found.effective_sample_size, num_samples * ones, rtol=0, atol=1e-8)
    assert (
        math.isnan(found.monte_carlo_error) if num_samples == 1 else found.monte_carlo_error < 1e-6
    )


@pytest.mark.parametrize(("batch_size", "max_pairs"), [(None, 1), (None, 17), (7, 30), (40, None)])
def test_chunks_reduce_to_the_log_mean_of_all_weights(batch_size, max_pairs, x, monkeypatch):
    # The constant: S is the number that was asked for, though the last chunk is smaller.
    vae = LinearGaussian()
    seen = []

    def noted(*args, **options):
        table = site_terms(*args, **options)
        seen.append(table.log_w)
        return table

    site_terms = likelihood.site_terms
    chosen = {"batch_size": batch_size, "max_pairs": max_pairs or 64}
    monkeypatch.setattr(likelihood, "site_terms", noted)
    found = importance_sampling(vae.model, vae.guide, x, num_samples=10, engine="eager", **chosen)
    by_row, row = [], []
    for log_w in seen:
        row.append(log_w)
        if sum(len(part) for part in row) == 10:
            by_row.append(torch.cat(row))
            row = []
    assert not row
    weights = torch.cat(by_row, dim=1).exp()
    assert weights.shape == (10, 40)
    torch.testing.assert_close(found.log_p, weights.mean(0).log().detach())
    size = weights.sum(0) ** 2 / (weights**2).sum(0)
    torch.testing.assert_close(found.effective_sample_size, size.detach())
    assert max(part.numel() for part in seen) <= max(chosen["max_pairs"], batch_size or 1)


@pytest.mark.parametrize("num_samples", [12, 25])
def test_recorded_weights_have_the_bits_of_eager_ones(num_samples, x):
    def estimate(engine):
        vae = LinearGaussian()
        settings = {"num_samples": num_samples, "batch_size": 7, "max_pairs": 70}
        return importance_sampling(vae.model, vae.guide, x, engine=engine, **settings)

    found, expected = estimate("recorded"), estimate("eager")
    assert torch.equal(found.log_p, expected.log_p)
    assert torch.equal(found.effective_sample_size, expected.effective_sample_size)


@pytest.mark.slow
def test_compiled_weights_are_those_of_eager_ones(x):
    vae = LinearGaussian()
    found, expected = (
        importance_sampling(vae.model, vae.guide, x, num_samples=50, engine=engine).log_p
        for engine in ("compiled", "eager")
    )
    torch.testing.assert_close(found, expected)


def test_more_samples_never_loosen_the_bound_on_average(x):
    vae = LinearGaussian()
    means = [
        sum(
            log_likelihood(vae.model, vae.guide, x, num_samples=k, seed=s).mean() for s in range(15)
        )
        / 15
        for k in (1, 4, 16)
    ]
    assert means[0] < means[1] < means[2] < vae.log_p(x).mean() + 0.02
    one = -elbo(vae.model, vae.guide, x, num_particles=100).elbo_nats
    assert -means[0].item() == pytest.approx(one, abs=0.1)


def test_log_likelihood_repeats_with_its_seed_and_differs_without(x):
    vae = LinearGaussian()
    first, again, other = (
        log_likelihood(vae.model, vae.guide, x, num_samples=5, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (40,)


def test_bound_splits_into_the_closed_forms(x):
    vae = LinearGaussian()
    num_particles = 400
    found = elbo(vae.model, vae.guide, x, num_particles=num_particles, batch_size=16)
    assert found.elbo_nats == pytest.approx(-found.rate_nats - found.distortion_nats, abs=1e-10)
    assert found.kl_nats == {"z": pytest.approx(found.rate_nats, abs=1e-10)}
    one = elbo(vae.model, vae.guide, x)
    error = 5 * one.elbo_nats.standard_error / math.sqrt(num_particles)
    assert abs(found.rate_nats - vae.rate(x).mean().item()) < error
    assert abs(found.distortion_nats - vae.distortion(x).mean().item()) < error
    assert found.elbo_nats < vae.log_p(x).mean().item()
    assert (found.num_data, found.num_dims) == (40, 3)
    assert found.bits_per_dim == pytest.approx(-found.elbo_nats / 3 / math.log(2))


@pytest.mark.parametrize("num_particles", [1, 6])
def test_bound_is_pyros_own_on_the_same_seed(num_particles, x):
    vae = LinearGaussian()
    loss = Trace_ELBO(
        num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=1
    )
    torch.manual_seed(9)
    expected = -loss.loss(vae.model, vae.guide, x) / len(x)
    found = elbo(vae.model, vae.guide, x, num_particles=num_particles, seed=9)
    assert found.elbo_nats == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PROGRAMS)
def test_bound_of_every_program_is_pyros_own_and_below_log_p(name):
    pair = PROGRAMS[name]()
    torch.manual_seed(2)
    with Program(pair.model, pair.guide).running():
        expected = -Trace_ELBO().loss(pair.model, pair.guide, *pair.args) / len(pair.args[0])
    found = elbo(pair.model, pair.guide, *pair.args, seed=2)
    assert found.elbo_nats == pytest.approx(expected, rel=1e-9)
    assert list(found.kl_nats) == list(pair.latents)
    assert sum(found.kl_nats.values()) == pytest.approx(found.rate_nats, abs=1e-9)
    bound = elbo(pair.model, pair.guide, *pair.args, num_particles=200)
    log_p = importance_sampling(pair.model, pair.guide, *pair.args, num_samples=200)
    assert bound.elbo_nats - 0.05 < log_p.mean < 0


def test_bound_ignores_how_the_plate_is_scaled(x):
    vae = LinearGaussian()

    def scaled(x):
        with pyro.poutine.scale(scale=7.0):
            vae.model(x)

    plain = elbo(vae.model, vae.guide, x)
    assert elbo(scaled, vae.guide, x).elbo_nats == plain.elbo_nats


def test_one_datum_has_a_number_but_no_spread(x):
    vae = LinearGaussian(num_latents=1, exact=True)
    found = importance_sampling(vae.model, vae.guide, x[:1], num_samples=4)
    assert found.mean == pytest.approx(vae.log_p(x[:1]).item(), abs=1e-10)
    assert math.isnan(found.mean.standard_error)
    assert math.isfinite(elbo(vae.model, vae.guide, x[:1]).elbo_nats)


@pytest.mark.parametrize("function", [elbo, importance_sampling])
def test_looking_changes_nothing(function, x, snapshot_of):
    vae = LinearGaussian()
    vae.norm = nn.BatchNorm1d(3).double()
    plain = vae.guide
    vae.guide = lambda x: plain(vae.norm(x))
    before = snapshot_of(vae)
    function(vae.model, vae.guide, x)
    assert snapshot_of(vae) == before


@pytest.fixture
def snapshot_of():
    def snapshot(module):
        state = {name: value.tolist() for name, value in module.state_dict().items()}
        modes = [m.training for m in module.modules()]
        gradients = [p.grad for p in module.parameters()]
        store = sorted(pyro.get_param_store().keys())
        settings = pyro.settings.get()
        return state, modes, gradients, store, settings, torch.get_rng_state().tolist()

    return snapshot


def test_memory_is_counted_by_the_largest_tensor_that_grows():
    wide = 5000
    network = nn.Sequential(nn.Linear(2, wide), nn.ReLU(), nn.Linear(wide, 4))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    program, x = Program(model, guide), torch.zeros(3, 4)
    assert pairs_at_once(program, Probe(program, x).layout, x) == 2**22 // wide


def test_progress_is_shown_on_the_error_stream_only_when_asked(x, capsys):
    vae = LinearGaussian()
    log_likelihood(vae.model, vae.guide, x, num_samples=50)
    assert capsys.readouterr() == ("", "")
    log_likelihood(vae.model, vae.guide, x, num_samples=50, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "log p(x): 40 data x 50 samples: 100%" in err


MISTAKES = {
    "no samples": (lambda x: {"num_samples": 0}, "num_samples=0: at least 1"),
    "no batch": (lambda x: {"batch_size": 0}, "batch_size=0: at least 1"),
    "empty": (lambda x: {"x": x[:0]}, r"x is empty, of shape \(0, 3\)"),
    "no tensor": (lambda x: {"x": x.sum()}, "x is Tensor: expected a tensor with one row"),
    "NaN": (lambda x: {"x": x / 0}, "are not all finite"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line(mistake, x):
    vae = LinearGaussian()
    change, message = MISTAKES[mistake]
    options = {"x": x * 0, **change(x * 0)}
    data = options.pop("x")
    with pytest.raises(ValueError, match=message) as caught:
        log_likelihood(vae.model, vae.guide, data, **options)
    assert "\n" not in str(caught.value)


def test_labels_of_another_length_are_refused(x):
    vae = LinearGaussian()
    with pytest.raises(ValueError, match="there are 39 fields for 40 data"):
        elbo(vae.model, vae.guide, x, torch.zeros(39))


def test_a_program_without_data_is_refused(x):
    vae = LinearGaussian()
    with pytest.raises(ProgramError, match="observes nothing"):
        elbo(lambda x: vae.guide(x), vae.guide, x)


def test_nan_is_never_reported(x):
    vae = LinearGaussian()
    vae.bias.data[0] = math.nan
    message = "gives NaN for 40 of 40 data, first at row 0"
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError, match=message):
            elbo(vae.model, vae.guide, x)
        with pytest.raises(ValueError, match=message):
            log_likelihood(vae.model, vae.guide, x, num_samples=3)
