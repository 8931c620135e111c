"""Autoencoders: codes without noise, what they cost, and that nothing calls their value a bound."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from command import TINY
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import evaluation, fit
from pyro_vae.cli import main
from pyro_vae.components import (
    MLP,
    Dictionary,
    Normal,
    Point,
    RatePoint,
    SparsePoint,
    TopKPoint,
)
from pyro_vae.inference import ELBO, IWAE, AnalyticELBO, Reconstruction
from pyro_vae.models import Autoencoder

FAMILIES: dict[str, Any] = {
    "Point": Point,
    "shrunk": partial(Point, shrinkage=0.3),
    "SparsePoint": partial(SparsePoint, weight=0.4),
    "RatePoint": partial(RatePoint, rate=0.2, weight=0.7),
    "TopKPoint": partial(TopKPoint, num_active=2),
}
RATE = torch.tensor(0.2, dtype=torch.float64)
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def autoencoder(posterior: Any, dtype: torch.dtype = torch.float32) -> Autoencoder:
    torch.manual_seed(1)
    built = Autoencoder.assemble(
        (3,), (5,), posterior=posterior, likelihood=partial(Normal, scale=1.0),
        network=partial(MLP, hidden=(4,)),
    )  # fmt: skip
    return built.to(dtype)


def code_and_cost(name: str, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return code ``[B, D]`` and cost ``[B]`` as the papers write them."""
    if name == "TopKPoint":
        kept = torch.zeros_like(raw)
        for row, numbers in enumerate(raw):
            for place in sorted(range(len(numbers)), key=lambda j: -numbers[j].item())[:2]:
                kept[row, place] = numbers[place]
        return kept, raw.new_zeros(len(raw))
    if name == "RatePoint":
        code = 1 / (1 + torch.exp(-raw))
        mean, rate = (
            torch.distributions.Bernoulli(code.mean(0)),
            torch.distributions.Bernoulli(RATE),
        )
        kl = torch.distributions.kl_divergence(rate, mean).sum()
        return code, 0.7 * kl.expand(len(raw))
    code = functional.relu(raw) if name == "SparsePoint" else raw
    weights = {"Point": 0.0, "shrunk": 0.15, "SparsePoint": 0.4}
    power = code if name == "SparsePoint" else code.square()
    return code, weights[name] * power.sum(-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_value_and_gradient_are_those_of_the_written_out_loss(name: str) -> None:
    program = autoencoder(FAMILIES[name], torch.float64)
    x = X.double()
    loss = Reconstruction().loss_and_grads(program.model, program.guide, x)
    found = {n: p.grad for n, p in program.named_parameters() if p.grad is not None}

    conditional = program.posterior
    raw = conditional.offset + conditional.network(x)
    code, cost = code_and_cost(name, raw.squeeze(1))
    decoder = program.likelihood
    decoded = (decoder.offset + decoder.network(code)).squeeze(1)
    log_p = torch.distributions.Normal(decoded, 1.0).log_prob(x).sum(-1)
    assert loss == pytest.approx(-log_p.sum().item(), abs=1e-9)
    total = (cost - log_p).sum()
    parameters = dict(program.named_parameters())
    expected = torch.autograd.grad(total, [parameters[n] for n in found])
    for gradient, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_codes_of_a_sparse_posterior_become_zero_as_their_price_rises() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    active = []
    for weight in (0.0, 1.0, 10.0):
        torch.manual_seed(1)
        program = Autoencoder.assemble(
            (3,), (8,), posterior=partial(SparsePoint, weight=weight),
            likelihood=partial(Normal, scale=0.5), encoder=partial(MLP, hidden=(16,)),
            decoder=Dictionary, data=x,
        )  # fmt: skip
        fit(program, x, epochs=20, batch_size=20, progress=False)
        active.append(float(evaluation.reconstruction_error(program, x).active_codes))
    assert active[0] > active[1] > active[2]


def test_a_dictionary_has_columns_of_norm_one_and_is_linear() -> None:
    network = Dictionary((4,), (2, 3)).double()
    torch.testing.assert_close(network.columns.norm(dim=0), torch.ones(4).double())
    code = torch.randn(7, 4, dtype=torch.float64)
    expected = torch.einsum("bj,dj->bd", code, network.columns).reshape(7, 2, 3)
    torch.testing.assert_close(network(code), expected)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(2), AnalyticELBO()])
def test_objectives_that_report_a_bound_refuse_points(objective: Any) -> None:
    with pytest.raises(ValueError, match=r"is a point, which has no density.*Reconstruction"):
        fit(autoencoder(Point), X, objective=objective, epochs=1, progress=False)


@pytest.mark.parametrize(
    "number",
    [evaluation.elbo, evaluation.importance_sampling, evaluation.mutual_information],
)
def test_evaluations_that_need_a_bound_refuse_points(number: Any) -> None:
    with pytest.raises(ValueError, match="is a point, which has no density"):
        number(autoencoder(Point), X)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "RatePoint" else pytest.mark.slow) for n in FAMILIES],
)
def test_a_run_names_its_value_and_recorded_steps_have_the_bits_of_eager_ones(name: str) -> None:
    found = {}
    for engine in ("eager", "recorded"):
        program = autoencoder(FAMILIES[name])
        done = fit(program, X, epochs=2, batch_size=5, progress=False, engine=engine)
        found[engine] = [p.detach().clone() for p in program.parameters()]
    for record in (done.start, *done.history):
        assert not [key for key in record if "elbo" in key or "rate_nats" in key]
        assert "validation_reconstruction_nats" in record
    assert "train_reconstruction_nats" in done.history[-1]
    assert "train_nats" not in done.history[-1]
    assert "reconstruction_nats" in repr(done)
    for eager, recorded in zip(found["eager"], found["recorded"], strict=True):
        assert same(eager, recorded)


DELTAS: dict[str, Any] = {
    "plain": lambda z: dist.Delta(z, event_dim=1),
    "independent": lambda z: dist.Delta(z).to_event(1),
    "expanded": lambda z: dist.ExpandedDistribution(dist.Delta(z), z.shape).to_event(1),
    "masked": lambda z: dist.Delta(z).to_event(1).mask(torch.ones(len(z)).bool()),
    "transformed": lambda z: dist.TransformedDistribution(
        dist.Delta(z).to_event(1), [dist.transforms.AffineTransform(0.1, 2.0)]
    ),
}


class OwnDelta(nn.Module):
    """A program of one's own: its guide is a Delta, or what ``point`` makes of the code."""

    def __init__(self, point: Any, prior: Any = None) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
        self.point, self.prior = point, prior or dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.point(self.encoder(x)))


@pytest.mark.parametrize("name", DELTAS)
def test_a_delta_of_ones_own_over_a_continuous_latent_is_a_point(name: str) -> None:
    torch.manual_seed(0)
    program = OwnDelta(DELTAS[name])
    done = fit(program, X, epochs=1, batch_size=10, progress=False)
    assert "validation_reconstruction_nats" in done.history[-1]
    assert not [key for key in done.history[-1] if "elbo" in key]
    with pytest.raises(ValueError, match="'z' is a point, which has no density"):
        evaluation.elbo(program, X)


def with_its_density(z: Tensor) -> Any:
    noise = torch.randn_like(z)
    density = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    return dist.Delta(z + noise, density, event_dim=1)


def passing_on(z: Tensor) -> Any:
    drawn = pyro.sample("a", dist.Normal(z, 1.0).to_event(1), infer={"is_auxiliary": True})
    return dist.Delta(drawn, event_dim=1)


def most_likely(z: Tensor) -> Any:
    return dist.Delta((z > 0).float(), event_dim=1)


@pytest.mark.parametrize(
    ("point", "prior"),
    [
        (with_its_density, None),
        (passing_on, None),
        (most_likely, dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)),
    ],
)
def test_a_delta_that_has_a_density_or_a_probability_gives_a_bound(point: Any, prior: Any) -> None:
    torch.manual_seed(0)
    assert evaluation.elbo(OwnDelta(point, prior), X).elbo_nats < 0


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    whole, parted = autoencoder(FAMILIES["RatePoint"]), autoencoder(FAMILIES["RatePoint"])
    fit(whole, X, epochs=3, batch_size=5, progress=False, out=tmp_path / "whole")
    stop = {"epochs": 3, "batch_size": 5, "progress": False, "out": tmp_path / "parted"}

    class Stop(Exception):
        pass

    from pyro_vae.engine.callbacks import Callback

    class After(Callback):
        def epoch(self, run: Any, record: Any) -> None:
            if record["epoch"] == 2:
                raise Stop

    with pytest.raises(Stop):
        fit(parted, X, **stop, checkpoint_seconds=0.0, callbacks=[After()])
    fit(parted, X, **stop, resume=True)
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert same(one.detach(), other.detach())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RatePoint((4,), rate=1.0), r"rate=1.0: .* is in \(0, 1\)"),
        (lambda: RatePoint((4,), rate=0.0), r"rate=0.0"),
        (lambda: TopKPoint((4,), num_active=5), "num_active=5: a code of 4 numbers keeps 1 to 4"),
        (lambda: SparsePoint((4,), weight=-1.0), "weight=-1.0: give a finite number of 0 or more"),
        (lambda: Point((4,), shrinkage=float("nan")), "shrinkage=nan"),
    ],
)
def test_arguments_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_command_trains_one_and_prints_no_bound(tmp_path: Any, capsys: Any) -> None:
    x = tmp_path / "x.npy"
    np.save(x, np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    out = str(tmp_path / "run")
    assert main(["train", "--data", str(x), "--model", "Autoencoder", "--out", out, *TINY]) == 0
    said = capsys.readouterr()
    assert "validation reconstruction" in said.err
    assert "ELBO" not in said.out + said.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "test_reconstruction_nats" in results
    assert not [key for key in results if "elbo" in key or "likelihood" in key or "bits" in key]
    assert main(["evaluate", out]) == 0
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["test_reconstruction_nats"] == results["test_reconstruction_nats"]
    assert main(["train", "--data", str(x), "--model", "Autoencoder", "--objective", "ELBO",
                 "--out", f"{out}-elbo", *TINY]) == 2  # fmt: skip
    assert "Reconstruction" in capsys.readouterr().err


def test_what_is_no_bound_is_not_compared_with_bounds() -> None:
    from pyro_vae.components import DiagonalNormal
    from pyro_vae.laboratory import compare

    program = autoencoder(DiagonalNormal)
    found = compare(
        program, X, objectives=[ELBO(), Reconstruction()], epochs=1, warm_up_epochs=0,
        num_rows=4, num_repeats=20, num_samples=2, batch_size=8,
    )  # fmt: skip
    assert "Reconstruction reports reconstruction_nats, which is no bound of log p(x)" in str(
        found.table()
    )
