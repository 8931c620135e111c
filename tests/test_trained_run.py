"""A trained run in Python and on the command line: latents, reconstructions and scores of rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import TINY

import pyro_vae
from pyro_vae import evaluation
from pyro_vae.cli import main

ROWS = np.random.default_rng(0).normal(size=(30, 3)).astype("f4")
BYTES = np.random.default_rng(1).integers(0, 256, (30, 6, 6)).astype("u1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    np.save(place / "real.npy", ROWS)
    np.save(place / "bytes.npy", BYTES)
    np.savez(place / "labelled.npz", x=ROWS, labels=np.array(["a", "b", "c"])[np.arange(30) % 3])
    made = {
        "real": [], "bytes": [], "labelled": ["--model", "ConditionalVAE"],
        "layers": ["--latent", "3,2"], "points": ["--model", "Autoencoder"],
    }  # fmt: skip
    for name, words in made.items():
        data = {"labelled": "labelled.npz", "bytes": "bytes.npy"}.get(name, "real.npy")
        data, out = str(place / data), str(place / name)
        assert main(["train", *TINY, "--data", data, "--out", out, *words]) == 0
    return place


def test_latents_are_those_of_the_program_in_the_order_of_the_rows(folder: Path) -> None:
    run = pyro_vae.load(folder / "real")
    found = run.encode(ROWS)
    expected = evaluation.posterior_means(run.program, torch.from_numpy(ROWS))["z"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(run.encode(ROWS[4:5]), expected[4:5])
    torch.testing.assert_close(run.encode(ROWS[::-1].copy()), expected.flip(0))
    assert run.event_shape == (3,)
    assert run.results["num_test"] == 3
    assert len(run.history) == 2
    assert "VAE on real" in repr(run)


def test_rows_are_observed_in_their_own_units(folder: Path) -> None:
    run = pyro_vae.load(folder / "bytes")
    assert run.event_shape == (1, 6, 6)
    alone, beside = run.encode(BYTES[:2]), run.encode(BYTES[:2, None])
    torch.testing.assert_close(alone, beside)
    assert run.reconstruct(BYTES[:2]).shape == (2, 1, 6, 6)
    assert torch.equal(run.encode(BYTES), run.encode(BYTES))


def test_decoding_the_latents_is_the_reconstruction(folder: Path) -> None:
    run = pyro_vae.load(folder / "real")
    torch.testing.assert_close(run.decode(run.encode(ROWS)), run.reconstruct(ROWS))
    assert run.sample(5).shape == (5, 3)
    assert torch.equal(run.sample(5, seed=3), run.sample(5, seed=3))


def test_a_score_is_the_evaluations(folder: Path) -> None:
    run = pyro_vae.load(folder / "real")
    found = run.log_prob(ROWS, num_samples=20, seed=1)
    expected = evaluation.importance_sampling(
        run.program, torch.from_numpy(ROWS), num_samples=20, seed=1
    )
    torch.testing.assert_close(found.log_p, expected.log_p)


def test_fields_are_given_by_name(folder: Path) -> None:
    run = pyro_vae.load(folder / "labelled")
    labels = np.array(["a", "b", "c"])[np.arange(30) % 3]
    found = run.encode(ROWS, labels=labels)
    assert found.shape == (30, 2)
    assert not torch.equal(found, run.encode(ROWS, labels=np.roll(labels, 1)))
    assert torch.equal(found, run.encode({"x": ROWS, "labels": labels}))
    assert run.classes == ("a", "b", "c")
    assert run.sample(3, label="b").shape == (3, 3)
    with pytest.raises(ValueError, match="the class 'd'"):
        run.encode(ROWS, labels=["d"] * 30)
    # Nothing is borrowed of the run's own rows.
    z = found[:2]
    assert not torch.equal(run.decode(z, labels=["a", "a"]), run.decode(z, labels=["b", "b"]))
    with pytest.raises(ValueError, match="takes labels beside its latents: give one for each row"):
        run.decode(z)


def test_several_latent_sites_come_by_name(folder: Path, capsys: Any) -> None:
    found = pyro_vae.load(folder / "layers").encode(ROWS)
    assert {name: tuple(z.shape) for name, z in found.items()} == {"z1": (30, 3), "z2": (30, 2)}
    out = folder / "layers.npz"
    assert main(["encode", str(folder / "layers"), "--out", str(out)]) == 0
    torch.testing.assert_close(torch.from_numpy(np.load(out)["z2"]), found["z2"])
    assert main(["encode", str(folder / "layers"), "--out", str(folder / "layers.npy")]) == 2
    assert "end the file in .npz or .csv" in capsys.readouterr().err


def test_the_commands_write_what_the_object_says(folder: Path, capsys: Any) -> None:
    run, place = pyro_vae.load(folder / "real"), str(folder / "real")
    out = folder / "z.csv"
    assert main(["encode", place, "--out", str(out)]) == 0
    lines = list(csv.reader(out.read_text().splitlines()))
    assert lines[0] == ["row", "z.0", "z.1"]
    table = torch.tensor([[float(word) for word in line[1:]] for line in lines[1:]])
    torch.testing.assert_close(table, run.encode(ROWS), rtol=1e-5, atol=1e-6)
    assert main(["reconstruct", place]) == 0
    found = torch.from_numpy(np.load(folder / "real" / "reconstructions.npy"))
    torch.testing.assert_close(found, run.reconstruct(ROWS))
    capsys.readouterr()
    assert main(["score", place, "--num-samples", "20", "--out", str(folder / "s.csv")]) == 0
    said = capsys.readouterr().out.splitlines()
    scores = run.log_prob(ROWS, num_samples=20).log_p
    assert said[1].startswith(f"row {int(scores.argmin())}: log p(x) {float(scores.min()):,.2f} +-")
    rows = list(csv.DictReader((folder / "s.csv").read_text().splitlines()))
    assert [*rows[0]] == ["row", "log_p_nats", "standard_error", "effective_sample_size"]
    torch.testing.assert_close(torch.tensor([float(r["log_p_nats"]) for r in rows]), scores)


def test_other_data_are_named_and_checked(folder: Path, capsys: Any) -> None:
    other, wrong = folder / "other.npy", folder / "wrong.npy"
    np.save(other, 2 * ROWS[:7])
    np.save(wrong, np.zeros((7, 4), "f4"))
    place = str(folder / "real")
    assert main(["encode", place, "--data", str(other), "--out", str(folder / "o.npy")]) == 0
    run = pyro_vae.load(folder / "real")
    found = torch.from_numpy(np.load(folder / "o.npy"))
    torch.testing.assert_close(found, run.encode(2 * ROWS[:7]))
    assert main(["encode", place, "--data", str(wrong)]) == 2
    assert "(4,), and the run was trained on data of the shape (3,)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="trained on data of the shape"):
        run.encode(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="levels=255 takes whole numbers"):
        pyro_vae.load(folder / "bytes").encode(np.full((1, 6, 6), 300))


def test_points_have_latents_and_no_scores(folder: Path, capsys: Any) -> None:
    run = pyro_vae.load(folder / "points")
    assert run.encode(ROWS).shape == (30, 2)
    assert run.reconstruct(ROWS).shape == (30, 3)
    with pytest.raises(ValueError, match="is a point, which has no density"):
        run.log_prob(ROWS)
    assert main(["score", str(folder / "points")]) == 2
    assert "is a point" in capsys.readouterr().err


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        pyro_vae.load(tmp_path / "nothing")
