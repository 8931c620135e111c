"""The command ``refit``, end to end at a tiny size, and what it says to mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from bits import same
from command import PRIOR, PROGRAM, train, tree, write_data
from runs import final

from pyro_vae.cli import main
from pyro_vae.engine.checkpoint import latest, load
from pyro_vae.engine.metrics import MetricsFile

TINY = ["--epochs", "2", "--num-samples", "2", "--device", "cpu"]
MIXTURE = ["--prior", "MixtureOfNormals(num_components=3)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    (path / "refit_program.py").write_text(PROGRAM)
    (path / "refit_prior.py").write_text(PRIOR)
    return path


@pytest.fixture(scope="module")
def trained(folder):
    """A run, which no test may change."""
    assert train("--data", folder / "real.npy", "--out", folder / "trained") == 0
    return folder / "trained"


@pytest.fixture(scope="module")
def refitted(trained, folder):
    """The same with another prior."""
    assert refit(trained, *MIXTURE, "--out", folder / "refitted") == 0
    return folder / "refitted"


def refit(*arguments) -> int:
    return main(["refit", *map(str, arguments[:1]), *TINY, *map(str, arguments[1:])])


def weights(run: Path):
    return load(latest(run / "checkpoints"))["best"]["modules"][0]


def results(run: Path) -> dict:
    found = json.loads((run / "results.json").read_text())
    found.pop("seconds")
    return found


def test_a_refit_is_a_run_of_its_own(trained, refitted, capsys):
    options = yaml.safe_load((refitted / "config.yaml").read_text())
    assert options["prior"]["class_path"] == "pyro_vae.components.MixtureOfNormals"
    assert options["refit"] == str(trained)
    before, after = weights(trained), weights(refitted)
    assert {name for name in after if name not in before} == {
        name for name in after if name.startswith("prior.")
    }
    assert all(same(after[name], before[name]) for name in before)
    record = results(refitted)
    assert record["refit_of"] == trained.name
    assert record["elbo_before_nats"] == results(trained)["test_elbo_nats"]
    assert record["aggregate_kl_before_nats"] == results(trained)["aggregate_kl_nats"]
    risen = record["aggregate_kl_before_nats"] - record["aggregate_kl_nats"]
    assert risen == pytest.approx(record["refit_gained_nats"], abs=1.0)
    assert main(["evaluate", str(refitted), "--num-samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "gained by the new prior (nats per datum)" in shown
    assert "marginal KL from the old prior (nats)" in shown
    assert "gained by the new prior" in (refitted / "report.html").read_text()
    assert results(refitted) == record
    # What other weights have gained is not known.
    copy = shutil.copytree(refitted, refitted.with_name("last"))
    assert main(["evaluate", str(copy), "--num-samples", "2", "--weights", "last"]) == 0
    assert "refit_gained_nats" not in results(copy)
    assert main(["sample", str(refitted), "--num", "3"]) == 0


def test_its_configuration_makes_it_again(refitted, tmp_path):
    again = tmp_path / "again"
    assert main(["train", "--config", str(refitted / "config.yaml"), "--out", str(again)]) == 0
    assert results(again) == results(refitted)


def test_a_refit_that_was_stopped_goes_on_to_the_same_bits(
    trained, refitted, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:

        def stopping(self, record):
            raise KeyboardInterrupt

        patch.setattr(MetricsFile, "append", stopping)
        assert refit(trained, *MIXTURE, "--out", tmp_path / "run") == 130
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert same(final(tmp_path / "run"), final(refitted))
    assert results(tmp_path / "run") == results(refitted)


def test_a_prior_and_a_program_of_ones_own(folder, tmp_path, capsys):
    """The data have moved, and so has the folder of the run."""
    data = shutil.copy(folder / "real.npy", tmp_path / "data.npy")
    assert train("--data", data, "--out", tmp_path / "first") == 0
    moved = Path(data).rename(tmp_path / "moved.npy")
    own = ["--prior", f"{folder}/refit_prior.py:StudentPrior", "--prior.df", "3"]
    out = tmp_path / "own"
    assert refit(tmp_path / "first", *own, "--out", out) == 2
    assert "say with --data where the data are now" in capsys.readouterr().err
    assert refit(tmp_path / "first", *own, "--data", moved, "--out", out) == 0
    options = yaml.safe_load((out / "config.yaml").read_text())
    assert options["prior"]["init_args"] == {"df": 3.0}
    assert options["data"] == str(moved)
    assert main(["evaluate", str(out), "--num-samples", "2", *own[:2]]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 2
    assert "name that class again on the command line" in capsys.readouterr().err


def test_points_gain_in_the_density_of_their_codes_alone(folder, tmp_path, capsys):
    given = ["--data", folder / "real.npy", "--model", "Autoencoder"]
    assert train(*given, "--out", tmp_path / "points") == 0
    assert "until it is fitted to the codes" in capsys.readouterr().out
    assert refit(tmp_path / "points", *MIXTURE, "--out", tmp_path / "fitted") == 0
    shown = capsys.readouterr().out
    assert "log p(z) of the codes gained by the new prior (nats per datum)" in shown
    assert "until it is fitted" not in shown
    record = results(tmp_path / "fitted")
    risen = record["code_log_density_nats"] - record["code_log_density_before_nats"]
    assert risen == pytest.approx(record["code_gained_nats"])
    assert (
        record["test_reconstruction_nats"]
        == results(tmp_path / "points")["test_reconstruction_nats"]
    )
    assert not [key for key in record if "elbo" in key]
    assert "ELBO" not in shown


@pytest.fixture(scope="module")
def others(folder):
    """Runs whose prior cannot be replaced from here, by what they are."""
    layers, own = folder / "layers", folder / "own"
    given = ["--data", folder / "real.npy", "--epochs", "1"]
    assert train(*given, "--latent", "3,2", "--out", layers) == 0
    words = ["train", *map(str, given), "--batch-size", "8", "--latent", "2", "--num-samples", "2",
             "--device", "cpu", "--model", f"{folder}/refit_program.py:MyVAE"]  # fmt: skip
    assert main([*words, "--out", str(own)]) == 0
    return {"layers": layers, "own": own}


@pytest.mark.parametrize(
    ("run", "arguments", "said"),
    [
        ("trained", [], "--prior: name the new prior, such as --prior NeuralSpline"),
        ("trained", ["--prior", "NeuralSplin"], "did you mean NeuralSpline?"),
        ("trained", ["--prior", "StandardNormal"], "StandardNormal has nothing to learn"),
        ("trained", ["--prior", "Bernoulli"], "Bernoulli cannot score what the guide draws at 'z'"),
        (
            "trained",
            [*MIXTURE, "--prior.num_components", "0"],
            "num_components 0: a mixture has",
        ),
        ("trained", [*MIXTURE, "--epochs", "-1"], "--epochs -1: give 0 or more"),
        ("trained", [*MIXTURE, "--objective", "ELBO"], "--objective: there is no such option"),
        ("nothing", MIXTURE, "is no run folder"),
        ("layers", MIXTURE, "HierarchicalVAE has several layers, all of which take --prior"),
        ("own", MIXTURE, "MyVAE takes no prior, so that there is none to replace"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run, arguments, said, folder, trained, others, tmp_path, capsys
):
    place = {"trained": trained, "nothing": tmp_path / "nothing", **others}[run]
    own = ["--model", f"{folder}/refit_program.py:MyVAE"] if run == "own" else []
    assert refit(place, *own, *arguments, "--out", tmp_path / "out") == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pyro-vae: ")]
    told = [line for line in told if "warning" not in line]
    assert len(told) == 1
    assert said in told[0]
    assert tree(tmp_path) == {}
