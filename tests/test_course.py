"""What a run's history says: tables of courses, each with what is to be said of it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from command import train

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, Normal
from pyro_vae.engine.course import divergence, is_rising, overfitting

NOISE = np.random.default_rng(0).normal(size=(2, 200))


def history(trained, found, *, rate=10.0, noise=0.0):
    """One record per epoch from a training and a validation ELBO."""
    return [
        {
            "epoch": number + 1,
            "train_nats": float(t + noise * NOISE[0, number]),
            "validation_elbo_nats": float(v + noise * NOISE[1, number]),
            "validation_rate_nats": float(rate),
            "validation_distortion_nats": float(-v - noise * NOISE[1, number] - rate),
        }
        for number, (t, v) in enumerate(zip(trained, found, strict=True))
    ]


def before(elbo, *, rate=0.1):
    return history([0.0], [elbo], rate=rate)[0]


EPOCHS = np.arange(100)
RISING = -90 - 400 * np.exp(-EPOCHS / 5)
PEAKED = RISING - 0.05 * np.maximum(
    EPOCHS - 35, 0
)  # the case of the VampPrior: 3 nats in 64 epochs

OVERFITS = {
    "rising together": (RISING, RISING, 0.3, None),
    "level at the end": (RISING + 0.05 * EPOCHS, RISING, 0.3, None),
    "peaked in epoch 36": (RISING + 0.2 * EPOCHS, PEAKED, 0.05, (25, 45)),
    "the same under more noise": (RISING + 0.2 * EPOCHS, PEAKED, 0.2, (25, 60)),
    "within noise": (RISING + 0.2 * EPOCHS, PEAKED, 2.0, None),
    "both fall": (PEAKED, PEAKED, 0.05, None),
    "at once, and by much": (RISING, RISING[0] - EPOCHS**2, 0.1, (1, 1)),
    "only just": (RISING[:37], PEAKED[:37], 0.0, None),
    "one epoch": (RISING[:1], RISING[:1], 0.0, None),
}


@pytest.mark.parametrize("case", OVERFITS)
def test_a_run_overfits_where_validation_falls_and_training_rises_beyond_noise(case):
    trained, found, noise, epochs = OVERFITS[case]
    said = overfitting(history(trained, found, noise=noise))
    if epochs is None:
        assert said is None
        return
    assert epochs[0] <= said.epoch <= epochs[1]
    fallen = max(found) - np.mean(found[-3:])
    assert said.fallen == pytest.approx(fallen, abs=3 * noise + 0.1)
    assert f"since epoch {said.epoch}" in str(said)
    assert "patience=10" in str(said)


# Validation ELBO before and after each epoch, rate, and whether it diverged, exploded, or neither.
COURSES = {
    "learning": (-540, [-200, -100, -90], 20, None),
    "learning, worse at first": (-540, [-600, -200, -90], 20, None),
    "astronomical": (-540, [-1e10, -1e20, -4e23], 20, "diverged"),
    "all in the rate": (-540, [-1e10, -1e20, -4e23], 4e23, "diverged"),
    "well, then badly": (-540, [-200, -100, -1e5], 20, "diverged"),
    "well, then as before training": (-540, [-200, -100, -535, -536], 20, "diverged"),
    "exploded and came back": (-540, [-200, -1e5, -300, -100], 20, "exploded"),
    "never better": (-540, [-545, -544, -545], 1, None),
    "an autoencoder, whose KL counts little": (-540, [-1900, -1950, -2000], 1960, None),
}


@pytest.mark.parametrize("case", COURSES)
def test_a_run_diverged_that_stands_worse_than_untrained(case):
    start, found, rate, said = COURSES[case]
    wrong = divergence(history(found, found, rate=rate), before(start))
    assert (wrong is None) == (said is None)
    if wrong is not None:
        assert str(wrong).startswith(f"training {said} in epoch ")
        assert "lr of optim" in str(wrong)
        assert wrong.came_back == (said == "exploded")


@pytest.mark.parametrize("nats", [5, 50], ids=["a little", "worse than untrained, by much"])
def test_a_run_that_only_overfits_did_not_diverge(nats):
    trained, found = RISING, PEAKED - nats * np.maximum(EPOCHS - 35, 0)
    assert divergence(history(trained, found), before(-490)) is None
    assert overfitting(history(trained, found)).epoch == 36


def test_nothing_is_said_of_no_epochs():
    assert divergence([], before(-1.0)) is None
    assert overfitting([]) is None


EARLY = {
    "the first epoch": ([-50.0], before(-80.0), True),
    "steadily": ([-80.0, -70.0, -60.0], None, True),
    "levelling off": ([-80.0, -60.0, -59.9], None, False),
    "by less than anyone wants": ([-80.00, -79.98, -79.95], None, False),
    "falling": ([-80.0, -60.0, -61.0], None, False),
    "a single epoch after nothing known": ([-80.0], None, False),
    "no epoch": ([], before(-80.0), False),
}


@pytest.mark.parametrize("case", EARLY)
def test_a_run_that_stopped_early_still_rose(case):
    found, start, expected = EARLY[case]
    assert is_rising(history(found, found), start) is expected


@pytest.mark.pictures
def test_what_was_not_trained_is_said_to_be_just_that(tmp_path, capsys):
    """Of one picture, all black, with two latents on a circle: no advice, and no warning."""
    x, out = tmp_path / "x.npy", tmp_path / "run"
    np.save(x, np.zeros((60, 4, 4), "u1"))
    options = ("--prior", "UniformSphere", "--posterior", "VonMisesFisher", "--latent", "2")
    assert train("--data", x, *options, "--epochs", "0", "--out", out) == 0
    said = capsys.readouterr()
    assert "the program is not trained: " in said.out
    assert not any(word in said.out for word in ("is used", "unused", "FreeBits"))
    assert not any(word in said.err for word in ("warning", "Traceback", "Error"))
    drawn = {path.stem for path in (out / "pictures").iterdir()}
    assert {"reconstructions", "samples", "traversals"} <= drawn
    assert not {"manifold", "temperatures"} & drawn


def test_fit_warns_of_a_run_that_diverged():
    torch.manual_seed(0)
    network = partial(MLP, hidden=(8,))
    vae = VAE.assemble((4,), (2,), likelihood=Normal, network=network)
    with pytest.warns(UserWarning, match=r"training diverged in epoch \d .*lr of optim"):
        done = fit(
            vae, torch.randn(60, 4), epochs=4, batch_size=16, engine="eager",
            optim=partial(torch.optim.Adam, lr=10.0),
        )  # fmt: skip
    assert math.isfinite(done.start["validation_elbo_nats"])
    assert done.history[-1]["validation_elbo_nats"] < done.start["validation_elbo_nats"]


@pytest.mark.filterwarnings("default:training diverged")
def test_a_diverged_run_is_stored_and_ends_with_another_status(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 4)))
    out = tmp_path / "run"
    told = ("--data", tmp_path / "x.npy", "--lr", "10", "--epochs", "4", "--out", out)
    assert train(*told) == 3
    said = capsys.readouterr()
    assert "training diverged in epoch" in said.out
    assert not any(word in said.out for word in ("is used", "unused", "train longer"))
    assert (out / "results.json").exists()
    assert (out / "report.html").exists()
