"""How the command line reads data: axes, codes of missing values, and classes, through a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import PROGRAM, train

from pyro_vae.cli import main
from pyro_vae.cli.data_loading import load_data
from pyro_vae.cli.options import training_parser


@pytest.mark.parametrize(("model", "event"), [("", (1, 4, 3)), ("VAE", (1, 4, 3)), ("own", (4, 3))])
def test_a_program_of_ones_own_sees_the_axes_of_the_file(tmp_path: Path, model, event) -> None:
    (tmp_path / "own_axes.py").write_text(PROGRAM)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 4, 3)))
    named = {"": [], "own": ["--model", f"{tmp_path / 'own_axes.py'}:MyVAE"]}
    config = training_parser().parse(named.get(model, ["--model", model]))
    assert load_data(tmp_path / "x.npy", config).event_shape == event


def test_masks_and_names_of_classes_go_through_a_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (60, 3))
    holes = rng.random(x.shape) < 0.2
    x[holes] = np.where(rng.random(x.shape) < 0.5, -9999, -8888)[holes]
    np.savez("x.npz", x=x, y=np.array([0, 1000, 2000])[np.arange(60) % 3])
    options = [
        "--missing",
        "-9999,-8888",
        "--likelihood",
        "Incomplete",
        "--model",
        "ConditionalVAE",
    ]
    assert train("--data", "x.npz", *options, "--out", "run") == 0
    assert "in 3 classes" in capsys.readouterr().err
    results = json.loads(Path("run/results.json").read_text())
    assert results["classes"] == ["0", "1000", "2000"]
    assert "0 0, 1 1000, 2 2000" in Path("run/report.html").read_text()
    assert main(["evaluate", "run", "--num-samples", "2"]) == 0
    again = json.loads(Path("run/results.json").read_text())
    assert again["test_elbo_nats"] == results["test_elbo_nats"]
