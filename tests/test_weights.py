"""A weight for each row: a field of the data, carried by every batch."""

from __future__ import annotations

import contextlib
import copy
import functools
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from command import train
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

from pyro_vae import SVI, VAE, fit
from pyro_vae.cli import compare as cli_compare
from pyro_vae.cli import runs as cli_runs
from pyro_vae.components import MLP, Normal
from pyro_vae.datasets import Data, Dataset, from_arrays, load
from pyro_vae.engine.data import Batches
from pyro_vae.inference import ELBO, IWAE, KLWeight, Program, Temperature

X = np.arange(60.0, dtype=np.float32).reshape(20, 3) + 0.5
ROWS = np.arange(20)


def rows_of(part: Data) -> torch.Tensor:
    """Return which of the rows of `X` a part holds."""
    return (part.x[:, 0] - 0.5) / 3


def held_together(dataset: Dataset) -> bool:
    parts = (dataset.train, dataset.validation, dataset.test)
    return all(torch.equal(part.weights, rows_of(part)) for part in parts)


KINDS = {
    "floats": ROWS.astype(np.float64),
    "integers": ROWS,
    "a list": ROWS.tolist(),
    "a tensor": torch.arange(20, dtype=torch.float16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_their_rows(kind):
    dataset = from_arrays(X, weights=KINDS[kind])
    assert held_together(dataset)
    assert dataset.train.weights.dtype == torch.float32


def test_booleans_are_weights_of_one_and_none():
    weights = from_arrays(X, weights=ROWS > 3).train.weights
    assert set(weights.tolist()) == {0.0, 1.0}


REFUSED = {
    "a negative one": (np.where(ROWS == 7, -0.5, 1.0), "-0.5 at row 7"),
    "NaN": (np.where(ROWS == 0, np.nan, 1.0), "nan at row 0"),
    "infinity": (np.where(ROWS == 19, np.inf, 1.0), "inf at row 19"),
    "beyond float32": (np.where(ROWS == 2, 1e300, 1.0), "inf at row 2"),
    "too few": (np.ones(19), r"shape \(19,\), expected \(20,\)"),
    "a column": (np.ones((20, 1)), r"shape \(20, 1\), expected \(20,\)"),
    "text": (np.array(["heavy"] * 20), "not numeric"),
    "nothing but zeros": (np.zeros(20), "all are 0"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_weights_that_do_not_fit_are_refused_with_the_row(case):
    weights, words = REFUSED[case]
    with pytest.raises(ValueError, match=f"weights of array.*{words}"):
        from_arrays(X, weights=weights)


def test_npz_holds_weights_beside_its_rows(tmp_path):
    np.savez(tmp_path / "a.npz", anything=X, weights=ROWS)
    assert held_together(load(tmp_path / "a.npz"))


def test_npz_holds_weights_of_splits(tmp_path):
    parts = {"train": X[:10], "validation": X[10:15], "test": X[15:]}
    np.savez(tmp_path / "a.npz", **parts, train_weights=ROWS[:10])
    dataset = load(tmp_path / "a.npz")
    assert torch.equal(dataset.train.weights, rows_of(dataset.train))
    assert dataset.test.weights is None


# ------------------------------------------------------------------------------ in training


def program():
    """Return a model whose best location is the weighted mean of its data, and a guide."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + 0 * z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    return model, guide


# The program has a closed form since its guide is the prior.
pytestmark = pytest.mark.filterwarnings("ignore:the guide is the same for every datum")
HALVES = torch.cat([torch.zeros(30, 2), torch.full((30, 2), 4.0)])
TRIPLE = torch.where(HALVES[:, 0] == 0, 3.0, 1.0)  # their weighted mean is 1
SGD = functools.partial(torch.optim.SGD, lr=5e-3)


def trained(weights=None, *, data=HALVES, **settings):
    model, guide = program()
    settings = {"epochs": 12, "batch_size": 48, "optim": SGD, "engine": "eager", **settings}
    done = fit(model, guide, data, data_weights=weights, **settings)
    ((_, loc),) = Program(model, guide).stored_parameters().items()
    return loc.detach().clone(), done.history


@pytest.mark.parametrize(
    "objective", [None, ELBO(), ELBO(2), IWAE(2)], ids=["default", "ELBO", "ELBO of two", "IWAE"]
)
def test_training_follows_the_weights_and_reports_the_bound_without_them(objective):
    loc, history = trained(TRIPLE, objective=objective)
    torch.testing.assert_close(loc, torch.ones(2), atol=0.05, rtol=0)
    # Half of the rows at 0 and half at 4: the mean of x's log-density at loc, whatever they weigh.
    train = from_arrays(HALVES, weights=TRIPLE).train.x
    value = dist.Normal(loc, 1.0).log_prob(train).sum(-1).mean().item()
    assert history[-1]["train_nats"] == pytest.approx(value, abs=0.05)


def test_weights_of_one_change_nothing():
    plain, history = trained(objective=ELBO(), epochs=3)
    ones, same = trained(torch.ones(60), objective=ELBO(), epochs=3)
    assert torch.equal(plain, ones)
    assert history == same


def test_recorded_and_streamed_steps_have_the_bits_of_eager_ones(monkeypatch):
    short = {"epochs": 2, "batch_size": 20}
    found = [trained(TRIPLE, objective=ELBO(), engine=e, **short) for e in ("eager", "recorded")]
    monkeypatch.setattr(Batches, "_move", lambda self: False)
    found.append(trained(TRIPLE, objective=ELBO(), **short))
    for loc, history in found[1:]:
        assert torch.equal(loc, found[0][0])
        assert history == found[0][1]


def test_a_weight_of_zero_leaves_a_row_out():
    rubbish = torch.where(HALVES == 0, HALVES, 1e4)
    loc, _ = trained(HALVES[:, 0] == 0, data=rubbish, objective=ELBO())
    torch.testing.assert_close(loc, torch.zeros(2))


def test_a_run_with_weights_goes_on_with_its_own_alone(tmp_path):
    whole, _ = trained(TRIPLE, epochs=4)
    trained(TRIPLE, epochs=4, out=tmp_path / "run")
    resumed, _ = trained(TRIPLE, epochs=4, out=tmp_path / "run", resume=True)
    assert torch.equal(whole, resumed)
    with pytest.raises(ValueError, match="data"):
        trained(TRIPLE + 1, epochs=4, out=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_replicas_take_the_weights_too():
    vae = VAE.assemble((2,), (1,), likelihood=partial_of_normal, network=partial_of_network)
    replicas = fit(copy.deepcopy(vae), HALVES, data_weights=TRIPLE, epochs=2, batch_size=20,
                   objective=ELBO(), num_replicas=2, engine="recorded").replicas  # fmt: skip
    alone = fit(vae, HALVES, data_weights=TRIPLE, epochs=2, batch_size=20, objective=ELBO())
    for mine, its in zip(replicas[0].history, alone.history, strict=True):
        assert mine["train_nats"] == pytest.approx(its["train_nats"], rel=1e-4)


partial_of_network = functools.partial(MLP, hidden=(4,))
partial_of_normal = functools.partial(Normal, scale=1.0)


# ------------------------------------------------------------------------- of handlers


class Scaled(nn.Module):
    """x ~ N(dz, 1), q = N(ax, exp(s)^2), with a scale around all, around x, or none."""

    def __init__(self, place):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(1, 3)
        self.place = place

    def scale(self, place, x):
        by = heavy(x) if place == "data" else 0.5
        return poutine.scale(scale=by) if place == self.place else contextlib.nullcontext()

    def model(self, x):
        with pyro.plate("data", len(x)), self.scale("data", x):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            with self.scale("observed", x):
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)), self.scale("data", x):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def heavy(x):
    return torch.where(x[:, 0] > 0, 5.0, 1.0)


ROWS_OF_THREE = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))


def stepped(place, objective, *, engine="eager", num_steps=3):
    program = Scaled(place)
    optim = functools.partial(torch.optim.SGD, lr=1e-3)
    svi = SVI(program.model, program.guide, optim, objective, engine=engine)
    torch.manual_seed(1)
    losses = [svi.step(ROWS_OF_THREE) for _ in range(num_steps)]
    return losses, torch.cat([p.detach().flatten() for p in program.parameters()])


@pytest.mark.parametrize("objective", [ELBO(), ELBO(3), IWAE(3)], ids=["ELBO", "ELBO 3", "IWAE"])
@pytest.mark.parametrize("place", ["observed", "data"])
def test_steps_follow_what_handlers_weigh_and_report_the_bound(place, objective):
    losses, weights = stepped(place, objective)
    plain, unweighted = stepped("nowhere", objective)
    assert losses[0] == pytest.approx(plain[0], rel=1e-6)
    assert (weights - unweighted).abs().max() > 1e-3
    if objective.num_particles == 1:
        of_pyro, followed = stepped(place, Trace_ELBO())
        torch.testing.assert_close(weights, followed)
        assert abs(of_pyro[0] - losses[0]) > 1


@pytest.mark.parametrize("engine", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", [pytest.param("observed", marks=pytest.mark.slow), "data"])
def test_recorded_steps_weigh_as_eager_ones_do(place, engine):
    for objective in (ELBO(), IWAE(3)):
        losses, weights = stepped(place, objective)
        found, again = stepped(place, objective, engine=engine)
        if engine == "recorded":
            assert (found, again.tolist()) == (losses, weights.tolist())
        else:
            assert found == pytest.approx(losses, rel=1e-5)
            torch.testing.assert_close(again, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3)], ids=["ELBO", "IWAE"])
def test_fit_takes_weights_from_handlers_as_from_the_data(objective):
    def fitted(place, weights=None, lr=1e-3):
        program, optim = Scaled(place), functools.partial(torch.optim.SGD, lr=lr)
        done = fit(program, ROWS_OF_THREE, data_weights=weights, objective=objective, optim=optim,
                   epochs=1, batch_size=16, engine="eager", weights="last")  # fmt: skip
        return done.history[-1]["train_nats"], [p.detach() for p in program.parameters()]

    in_program, found = fitted("data")
    of_data, expected = fitted("nowhere", heavy(ROWS_OF_THREE))
    unweighted, other = fitted("nowhere")
    assert in_program == pytest.approx(of_data, rel=1e-6)
    torch.testing.assert_close(found, expected)
    assert max((a - b).abs().max() for a, b in zip(found, other, strict=True)) > 1e-4
    of_observed, of_none = (fitted(place, lr=0.0)[0] for place in ("observed", "nowhere"))
    assert of_observed == pytest.approx(of_none, rel=1e-6)
    assert unweighted != pytest.approx(in_program, rel=1e-6)


@pytest.mark.parametrize("handler", [KLWeight, Temperature])
def test_one_string_is_no_list_of_sites(handler):
    with pytest.raises(TypeError, match=r"""sites='z10'.*sites=\["z10"\]"""):
        handler(0.5, sites="z10")


def test_weights_of_a_data_set_are_those_of_its_training_rows():
    dataset = from_arrays(X)
    with pytest.raises(ValueError, match=r"training rows.*shape \(20,\), expected \(16,\)"):
        fit(*program(), dataset, data_weights=np.ones(20))


def test_a_loss_of_pyros_says_that_it_is_no_bound():
    with pytest.warns(UserWarning, match="validation_elbo_nats"):
        trained(TRIPLE, objective=Trace_ELBO(), epochs=1)
    with pytest.raises(ValueError, match="use IWAE or Renyi"):
        trained(TRIPLE, objective=RenyiELBO(num_particles=2), epochs=1)


def test_the_command_line_takes_weights_from_a_file_and_from_the_archive(tmp_path, monkeypatch):
    archive, plain, alone = (str(tmp_path / f"{name}.npz") for name in ("x", "plain", "alone"))
    np.savez(archive, x=HALVES.numpy(), mine=TRIPLE.numpy(), weights=np.ones(60))
    np.savez(plain, x=HALVES.numpy())
    np.savez(alone, rows=HALVES.numpy(), mine=TRIPLE.numpy())
    np.save(tmp_path / "w.npy", TRIPLE.numpy())
    given = []
    monkeypatch.setattr(
        cli_runs, "fit_as_set", lambda _, d, s: given.append(d.train.weights) or 1 / 0
    )
    monkeypatch.setattr(
        cli_compare, "compare_objectives", lambda _, d, **k: given.append(d.train.weights) or 1 / 0
    )
    out = ["--out", str(tmp_path / "run")]
    weights = ["--data-weights", str(tmp_path / "w.npy")]
    for words in (
        ["--data", archive, "--data-weights", "mine"],
        ["--data", alone, "--data-weights", "mine"],
        ["--data", plain, *weights],
    ):
        with contextlib.suppress(ZeroDivisionError):
            train(*words, *out)
    with contextlib.suppress(ZeroDivisionError):
        cli_compare.compare(["--data", plain, *weights, "--objectives", "ELBO", *out])
    expected = from_arrays(HALVES, weights=TRIPLE).train.weights
    assert [torch.equal(found, expected) for found in given] == [True] * 4


@pytest.mark.filterwarnings("ignore:x.npz")  # an array that nothing names
def test_the_command_line_says_which_weights_there_are_not(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=HALVES.numpy(), short=np.ones(7))
    for name, words in {"typo": "holds x, short", "short": r"\(7,\)", "no.npy": "no.npy"}.items():
        assert train("--data", str(tmp_path / "x.npz"), "--data-weights", name) == 2
        assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3)])
def test_a_loop_of_ones_own_may_hold_the_weights_of_its_one_batch(objective):
    """A tensor outside the program fits this batch alone, not the few rows of a first check."""
    x, weights = torch.randn(12, 3), torch.rand(12) + 0.5

    def loss(scale):
        torch.manual_seed(0)
        vae = VAE.assemble(
            (3,), (2,), likelihood=Normal, network=functools.partial(MLP, hidden=[4])
        )
        model, guide = (pyro.poutine.scale(part, scale=scale) for part in (vae.model, vae.guide))
        return SVI(model, guide, functools.partial(torch.optim.SGD, lr=0.0), objective).step(x)

    assert loss(weights) == pytest.approx(loss(1.0))
