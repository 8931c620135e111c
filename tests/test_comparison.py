"""The laboratory: same seed, same table; refused rows; nothing changed; what its numbers are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pyro
import pytest
import torch
from exact import Gaussian
from laws import PROGRAMS, vae_mlp
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.components import MLP, Automatic
from pyro_vae.datasets import from_arrays
from pyro_vae.engine import Observation
from pyro_vae.evaluation import elbo
from pyro_vae.evaluation.estimates import Estimate
from pyro_vae.inference import (
    ELBO,
    IWAE,
    NVIL,
    RWS,
    AnalyticELBO,
    BetaVAE,
    DReG,
    InChunks,
    Program,
    Renyi,
)
from pyro_vae.laboratory import compare
from pyro_vae.laboratory.comparison_record import described
from pyro_vae.laboratory.snapshots import Snapshots, Weights, steps_of_a_curve
from pyro_vae.models import VAE
from pyro_vae.report import plots
from pyro_vae.report.comparison import compared


class AsDouble(Observation):
    """Rows as they are, in the type of the programs here."""

    def __call__(self, x):
        return x.double()


TINY = {
    "observation": AsDouble(), "epochs": 2, "warm_up_epochs": 0, "batch_size": 10, "num_rows": 8,
    "num_repeats": 20, "num_samples": 5, "device": "cpu", "engine": "eager",
}  # fmt: skip


def rows(num=40):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 2, (num, 4), generator=generator).double()


def program():
    torch.manual_seed(1)
    return VAE.assemble((4,), (2,), network=partial(MLP, hidden=(5,))).double()


def run(objectives, vae=None, **options):
    return compare(vae or program(), rows(), objectives=objectives, **{**TINY, **options})


@pytest.fixture(scope="module")
def found():
    """One comparison, which no test may change."""
    torch.set_num_threads(1)  # as every test does, since bits depend on it
    return run([ELBO(), IWAE(3), Trace_ELBO()], warm_up_epochs=1)


# ---------------------------------------------------------------------------- what it tells


def untimed(record):
    """Leave out what a clock decided."""
    kept = []
    for row in record["rows"]:
        row = {k: v for k, v in row.items() if k not in ("seconds_per_step", "time_ratio")}
        row.pop("at_equal_time")
        late = row["at_equal_steps"]
        kept.append({**row, "curve": None, "at_equal_steps": {**late, "seconds": None}})
    return kept


def test_the_same_seed_gives_the_same_table(found):
    again = run([ELBO()], warm_up_epochs=1)
    assert untimed(again.record()) == untimed(found.record())[:1]


def test_another_seed_gives_another_table_and_nothing_else_is_changed(found):
    vae, objective = program(), NVIL()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    torch.manual_seed(4)
    state = torch.get_rng_state()
    other = run([ELBO(), objective], vae, warm_up_epochs=1, seed=1)
    assert untimed(other.record())[:1] != untimed(found.record())[:1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert objective.baseline.center == 0


def test_objectives_have_all_in_common(found):
    # Our ELBO is Pyro's to the last digit, so that every number but the times is the same.
    ours, pyros = (row for row in found.rows if row.objective in ("ELBO", "Trace_ELBO"))
    assert ours.guide.snr == pytest.approx(pyros.guide.snr)
    assert ours.model.total_variance == pytest.approx(pyros.model.total_variance)
    assert ours.at_equal_steps.elbo_nats == pytest.approx(pyros.at_equal_steps.elbo_nats)
    assert pyros.at_equal_steps.gain_nats.value == pytest.approx(0, abs=1e-9)
    assert pyros.bound_nats is None


def test_no_row_depends_on_the_others(found):
    alone = run([IWAE(3)], warm_up_epochs=1).rows[0]
    among = found.rows[1]
    assert alone.guide == among.guide
    assert alone.model_from_log_p == among.model_from_log_p
    assert alone.bound_nats == among.bound_nats
    assert alone.at_equal_steps.log_p_nats == among.at_equal_steps.log_p_nats


def test_the_numbers_are_those_of_training_alone(found):
    from pyro_vae.fitting import fit

    vae, data = program(), from_arrays(rows())
    fit(vae, data, observation=AsDouble(), objective=IWAE(3), epochs=2, batch_size=10,
        device="cpu", engine="eager", schedule=lambda done: 1.0, weights="last")  # fmt: skip
    bound = elbo(vae.model, vae.guide, data.test.x.double(), num_particles=10)
    late = found.rows[1].at_equal_steps
    assert late.elbo_nats == bound.elbo_nats
    assert (late.rate_nats, late.distortion_nats) == (bound.rate_nats, bound.distortion_nats)
    assert late.step == found.settings["num_steps"]
    assert late in [replace(point, gain_nats=late.gain_nats) for point in found.rows[1].curve]


def test_the_gain_is_the_difference_with_an_error_of_its_own(found):
    first, *others = (row.at_equal_steps for row in found.rows)
    assert (first.gain_nats, first.gain_nats.standard_error) == (0.0, 0.0)
    for point in others:
        gain = point.log_p_nats.value - first.log_p_nats.value
        assert point.gain_nats.value == pytest.approx(gain, abs=1e-9)
        assert point.gain_nats.standard_error < point.log_p_nats.standard_error


def test_equal_time_is_what_the_fastest_took(found):
    fastest = min(row.seconds_per_step.value for row in found.rows)
    budget = found.settings["num_steps"] * fastest
    assert found.settings["equal_seconds"] == pytest.approx(budget)
    for row in found.rows:
        point = row.at_equal_time
        assert point.seconds == pytest.approx(point.step * row.seconds_per_step.value)
        # As many steps as fit, and at least one.
        assert point.seconds <= budget * (1 + 1e-6) or point.step == 1
        assert point.seconds + row.seconds_per_step.value > budget
    ratio = found.rows[0].time_ratio
    assert (ratio, ratio.standard_error) == (1.0, 0.0)


def test_log_p_is_above_the_elbo_and_the_reported_bound_between():
    row = run([IWAE(8)], epochs=5, num_samples=200).rows[0]
    late = row.at_equal_steps
    assert late.elbo_nats.value < row.bound_nats.value < late.log_p_nats.value + 0.02


@pytest.mark.slow
def test_bias_is_seen_where_it_is():
    bed = Gaussian()
    with torch.no_grad():
        bed.c.add_(0.5)  # off the posterior: at it the gradient is noise alone
    data = torch.randn(200, 2, dtype=torch.float64)
    options = {"num_repeats": 120, "num_rows": 100, "warm_up_epochs": 0, "epochs": 1}
    options |= {"engine": "recorded", "objectives": [IWAE(4), RWS(4)]}
    straight, wake = compare(bed, data, **{**TINY, **options}).rows
    for part in (straight.model, straight.guide, wake.model):
        assert part.relative_bias.value < 3 * part.relative_bias.standard_error
    assert wake.guide.relative_bias.value > 4 * wake.guide.relative_bias.standard_error


@pytest.mark.slow
def test_more_particles_are_nearer_to_log_p():
    options = {"num_repeats": 40, "num_rows": 40, "epochs": 1, "engine": "recorded"}
    found = run([ELBO(), IWAE(16)], warm_up_epochs=0, **options).rows
    one, many = (row.model_from_log_p for row in found)
    assert many.value < one.value


# ---------------------------------------------------------------------------- what it leaves


@pytest.mark.parametrize(
    "name",
    [
        "functions, pyro.param",
        pytest.param("functions, pyro.module", marks=pytest.mark.slow),
        pytest.param("two latents", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_program_is_compared_and_put_back(name):
    pair = PROGRAMS[name]()
    pair.model(*pair.args), pair.guide(*pair.args)
    store = {n: p.clone() for n, p in pyro.get_param_store().named_parameters()}
    found = compare(pair.model, pair.guide, rows(), objectives=[IWAE(2)], **TINY)
    assert all(row.at_equal_steps is not None for row in found.rows)
    now = dict(pyro.get_param_store().named_parameters())
    assert all(torch.equal(value, now[n]) for n, value in store.items())


@pytest.mark.slow
def test_a_subsampled_plate_is_compared_per_datum():
    beds = [Gaussian(), Gaussian(full_size=36)]
    data = torch.randn(40, 2, dtype=torch.float64)
    small, large = (
        compare(bed, data, objectives=[IWAE(3)], **{**TINY, "epochs": 1, "warm_up_epochs": 0}).rows[
            0
        ]
        for bed in beds
    )
    assert small.bound_nats.value == pytest.approx(large.bound_nats.value, rel=0.05)
    assert small.model.snr.value == pytest.approx(large.model.snr.value, rel=1e-6)


def test_labels_are_taken_along():
    pair = PROGRAMS["labels"]()
    data = (rows(), torch.arange(40) % 3)
    found = compare(pair.model, pair.guide, data, objectives=[ELBO()], **TINY)
    assert found.rows[0].at_equal_steps.log_p_nats.value < 0


# ---------------------------------------------------------------------------- refusals


def bernoulli():
    posterior = partial(Automatic, distribution="Bernoulli")
    torch.manual_seed(1)
    return VAE.assemble(
        (4,), (2,), network=partial(MLP, hidden=(5,)), posterior=posterior, prior=posterior
    ).double()


def test_a_refused_objective_is_a_row_that_says_why_and_the_others_go_on():
    found = run([IWAE(3), RWS(3), TraceMeanField_ELBO()], bernoulli(), epochs=1)
    refused, wake, mean_field = found.rows
    assert "use VIMCO or RWS" in refused.failure
    assert "use AnalyticELBO" in mean_field.failure
    assert refused.model is refused.at_equal_steps is None
    assert (wake.time_ratio, wake.time_ratio.standard_error) == (1.0, 0.0)  # the first that could
    assert "Not trained:\n  IWAE(num_particles=3): IWAE needs" in found.table()
    json.dumps(found.record(), allow_nan=False)
    plots.png(compared(found))


class Exploding(ELBO):
    """Fails in training, not before."""

    def surrogate(self, terms):
        return super().surrogate(terms) * 1e200


def test_an_objective_that_explodes_is_a_row_that_says_so():
    """Rows are named by a mapping."""
    objectives = {"one": ELBO(), "other": Exploding()}
    found = run(objectives, epochs=1, optim=partial(torch.optim.SGD, lr=1e-3))
    assert [row.objective for row in found.rows] == ["one", "other"]
    assert found.rows[0].failure is None
    assert "the loss is nan at step" in found.rows[1].failure
    assert found.rows[1].at_equal_steps is None


@pytest.mark.parametrize(
    ("objectives", "options", "said"),
    [
        ([], {}, "objectives is empty: give at least one"),
        ({}, {}, "objectives is empty"),
        (ELBO(), {}, "objectives=an ELBO: expected a sequence.*put it in a list"),
        ([ELBO(), ELBO()], {}, "objectives has ELBO twice"),
        ([ELBO, IWAE(3)], {}, r"objectives=.*write ELBO\(\), an object"),
        ([ELBO()], {"epochs": 0}, "epochs=0: at least 1"),
        ([ELBO()], {"num_repeats": 3}, "num_repeats=3: at least 20"),
        ([ELBO()], {"batch_size": 1000}, "batch_size=1000 "),
        ([ELBO()], {"batch_size": 0}, "batch_size=0: at least 1"),
        ([ELBO()], {"device": "tpu"}, "device='tpu' is not here"),
    ],
)
def test_mistakes_are_told(objectives, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        run(objectives, **options)


def test_fewer_rows_than_a_batch_are_one_batch():
    options = {**TINY, "batch_size": None, "epochs": 1, "warm_up_epochs": 0}
    found = compare(program(), rows(), objectives=[ELBO()], **options)
    assert found.rows[0].failure is None
    assert found.settings["batch_size"] == 32  # the rows that are left to train on


def test_none_that_can_is_an_error():
    with pytest.raises(ValueError, match=r"no objective can train this program; IWAE.*use VIMCO"):
        run([IWAE(3), DReG(3)], bernoulli())


# ---------------------------------------------------------------------------- names, text, figure


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (ELBO(), "ELBO"),
        (ELBO(5), "ELBO(num_particles=5)"),
        (IWAE(), "IWAE(num_particles=50)"),
        (Renyi(0.5, 8), "Renyi(num_particles=8)"),
        (Renyi(2.0, 8), "Renyi(alpha=2.0, num_particles=8)"),
        (DReG(8, alpha=0.5), "DReG(num_particles=8, alpha=0.5)"),
        (BetaVAE(2.0), "BetaVAE(beta=2.0)"),
        (InChunks(IWAE(8), 2), "InChunks(objective=IWAE, particles_at_once=2)"),
        (AnalyticELBO(), "AnalyticELBO"),
        (Trace_ELBO(), "Trace_ELBO"),
    ],
)
def test_objectives_are_named_after_what_they_are(objective, name):
    assert described(objective) == name


def test_the_table_has_a_line_for_each_and_fits_a_terminal(found):
    lines = found.table().splitlines()
    for row in found.rows:
        assert sum(line.startswith(f"{row.objective} ") for line in lines) == 3
    assert max(map(len, lines)) < 130
    assert "nan" not in found.table()


def test_the_figure_is_drawn(found):
    figure = compared(found)
    assert len(figure.axes) == 6
    drawn = {line.get_label() for line in figure.axes[0].containers}
    assert drawn == {row.objective for row in found.rows}
    assert plots.png(figure).startswith(b"\x89PNG")


def test_not_a_number_is_null(found):
    broken = replace(found.rows[0], bound_nats=Estimate(math.nan, math.inf))
    record = replace(found, rows=[broken]).record()
    assert record["rows"][0]["bound_nats"] == {"value": None, "standard_error": None}


# ---------------------------------------------------------------------------- snapshots


def test_weights_are_taken_after_the_steps_that_are_wanted():
    pair = vae_mlp()
    program = Program(pair.model, pair.guide)
    weights = Weights(program)
    snapshots = Snapshots(weights, {2, 5})
    first = next(iter(program.parameters().values()))
    for step in range(1, 7):
        with torch.no_grad():
            first.fill_(step)
        run = SimpleNamespace(progress=SimpleNamespace(step=step))
        snapshots.step(run, torch.tensor(0.0))
    assert set(snapshots.taken) == {2, 5}
    for step, taken in snapshots.taken.items():
        weights.load(taken)
        assert (first == step).all()


@pytest.mark.parametrize("num_steps", [1, 2, 7, 240])
def test_a_curve_ends_with_the_last_step(num_steps):
    steps = steps_of_a_curve(num_steps)
    assert max(steps) == num_steps
    assert min(steps) >= 1
