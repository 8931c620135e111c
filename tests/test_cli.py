"""The command line: its options, and every kind of run from its data to its report."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import yaml
from bits import same
from command import FUNCTIONS, PRIOR, PROGRAM, SCALE, TINY, shorten_annealing, train, write_data
from PIL import Image
from quick import some
from runs import child, final

from pyro_vae.cli import main
from pyro_vae.cli.combinations import matching_posterior, matching_prior, small_parts
from pyro_vae.cli.names import ROLES, offered, stated
from pyro_vae.cli.options import training_parser
from pyro_vae.engine.metrics import MetricsFile

FLAGS = (
    "--batch-size", "--clip-norm", "--config", "--corruption", "--data", "--data-root",
    "--data-weights", "--decoder",
    "--device",
    "--encoder", "--engine", "--epochs",
    "--help", "--init-from",
    "--labelled-share", "--latent", "--likelihood", "--lr", "--min-documents", "--missing",
    "--model", "--momentum",
    "--network",
    "--num-labels", "--num-samples",
    "--objective", "--observation", "--out", "--patience", "--posterior", "--print_config",
    "--kl-warmup", "--beta", "--free-bits",
    "--precision", "--prior", "--refit", "--resume", "--schedule", "--seed", "--tensorboard",
    "--stop-words", "--turns", "--vocabulary", "--weights", "--word-dropout",
    "--invalid", "--label-column", "--longer", "--max-length", "--max-symbols", "--symbols",
    "--text-column", "--columns", "--ignore",
)  # fmt: skip
COMMANDS = ("train", "evaluate", "sample", "plot", "impute", "refit", "finetune", "compare", "list")
FILES = {
    "config.yaml",
    "data",
    "metrics.jsonl",
    "results.json",
    "report.html",
    "checkpoints",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def trained(folder):
    """One run, which no test may change."""
    out = folder / "trained"
    assert train("--data", folder / "real.npy", "--out", out) == 0
    return out


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def results(out: Path) -> dict:
    found = json.loads((out / "results.json").read_text())
    found.pop("seconds")
    return found


def table_of(text: str) -> dict[str, str]:
    """Return the rows of the table that a run ends with."""
    rows = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


# Options ------------------------------------------------------------------------------------------


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        name: action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not name.endswith(".help")
    }


def test_the_flags_are_frozen():
    assert sorted(options(training_parser())) == sorted(FLAGS)


def test_every_option_has_help_and_is_shown(capsys):
    assert all(action.help for action in options(training_parser()).values())
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{flag} " in shown for flag in FLAGS if flag != "--help")
    assert len(shown.splitlines()) < 175
    assert max(map(len, shown.splitlines())) <= 120
    assert not re.search(r"class_path|Callable|Standardize|torch\.", shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: pyro-vae")
    assert shown.err == ""


def test_a_parts_own_arguments_are_shown(capsys):
    assert main(["train", "--likelihood.help", "Normal"]) == 0
    assert "--likelihood.min_scale" in capsys.readouterr().out


def test_without_a_command_the_commands_are_shown(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_version(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {version('pyro-vae')}\n"


def test_list_shows_every_part_once_with_its_line(capsys):
    assert main(["list"]) == 0
    sections = capsys.readouterr().out.split("\n--")[1:]
    options = [section.partition("\n")[0].split(", --") for section in sections]
    assert [name for names in options for name in names] == list(ROLES)
    for section, (option, *others) in zip(sections, options, strict=True):
        assert all(offered(other).keys() <= offered(option).keys() for other in others)
        rows = re.findall(r"^  (\w+) +(\S.*\.)$", section, re.MULTILINE)
        # Likelihoods are listed by kind of data, the others in their order.
        assert sorted(name for name, _ in rows) == sorted(offered(option))
        assert all(10 < len(line) < 120 and ":math:" not in line for _, line in rows)


def test_list_names_the_distributions_of_pyro(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.partition("any of Pyro's distributions:\n")[2]
    names = listed.partition("\n\n")[0].replace("\n", " ").split(", ")
    assert {"Laplace", "NegativeBinomial", "VonMises"} <= set(names)
    assert all(hasattr(dist, name) for name in names)


def test_options_are_not_abbreviated(capsys):
    assert main(["train", "--epo", "3"]) == 2
    assert "did you mean --epochs?" in capsys.readouterr().err


# Every part by its name ---------------------------------------------------------------------------

# What a part needs beside its own name and what it states of itself; most need nothing.
COMPANIONS = {
    ("model", "VQVAE"): "--posterior.num_codes 3",
    ("model", "TopDownVAE"): "--data bytes.npy",
    ("model", "ConditionalVAE"): "--data binary.npz",
    ("model", "M2"): "--data binary.npz --num-labels 8",
    ("model", "ProdLDA"): "--data sequences.npy",
    ("model", "NVLDA"): "--data sequences.npy",
    ("likelihood", "Incomplete"): "--data holes.npy",
    ("objective", "DisARM"): "--prior Bernoulli --posterior Bernoulli",
    ("objective", "InChunks"): "--objective.objective IWAE",
    ("network", "Convolutional"): "--data bytes.npy --network.channels [2]",
    ("network", "FullyConvolutional"): "--data bytes.npy --latent 2x3x3 --network.channels 2",
    ("network", "ConvolutionalResidual"): "--data bytes.npy --network.channels [2]",
    ("network", "Recurrent"): "--data counts.npy --network.num_symbols 17 --decoder MLP",
    ("network", "Transformer"): "--data counts.npy --network.num_symbols 17 --decoder MLP",
    ("network", "RecurrentDecoder"): "--encoder MLP",
    ("network", "TransformerDecoder"): "--encoder MLP",
    ("observation", "Binarize"): "--data counts.npy --likelihood Bernoulli",
    ("observation", "Dequantize"): "--data counts.npy --likelihood Normal",
    ("observation", "Rescale"): "--data counts.npy --likelihood Normal",
}
FILES_OF_KIND = {
    "bits": "binary.npz",
    "counts": "counts.npy",
    "levels and categories": "bytes.npy",
    "numbers between 0 and 1": "unit.npy",
    "words and sequences": "sequences.npy",
    "tables": "table.npy",
    "shares that sum to one": "simplex.npy",
    "one-hot vectors": "onehot.npy",
    "directions": "directions.npy",
}


def companions_of(option: str, name: str) -> list[str]:
    """Return the other options that a part needs, from what it states where it does."""
    part = offered(option)[name]
    words = []
    if option == "likelihood":
        words += ["--data", FILES_OF_KIND.get(stated(part, "data", ""), "real.npy")]
    if option == "prior":
        words += ["--posterior", matching_posterior(small_parts(), name)]
    if option == "posterior":
        words += ["--prior", matching_prior(small_parts(), name)]
    for argument, value in stated(part, "example", {}).items():
        if isinstance(value, (int, str)):
            words += [f"--{option}.{argument}", str(value)]
    return words + COMPANIONS.get((option, name), "").split()


# Each role once, several in one command.
TOGETHER = {
    "real numbers": "--data real.npy --prior VampPrior --prior.num_pseudo_inputs 3 "
    "--posterior FullNormal --objective IWAE --objective.num_particles 2 --schedule Cosine "
    "--encoder Residual --encoder.width 8 --decoder GatedMLP --decoder.hidden [8]",
    "binarized counts": "--data counts.npy --model HierarchicalVAE --latent 3,2 "
    "--observation Binarize --likelihood Bernoulli --turns Aggressive --network.hidden [8]",
    "images": "--data bytes.npy --likelihood ContinuousBernoulli "
    "--network Convolutional --network.channels [2] --corruption GaussianNoise",
}


def test_every_offered_part_is_taken_by_its_name(capsys):
    """Named several at once; that each is built and trains is asked without a command line."""
    for names in zip_longest(*map(offered, ROLES)):
        row = {option: name for option, name in zip(ROLES, names, strict=True) if name}
        words = [word for option, name in row.items() for word in (f"--{option}", name)]
        assert main(["train", *words, "--print_config"]) == 0, words
        shown = yaml.safe_load(capsys.readouterr().out)
        for option, name in row.items():
            assert shown[option]["class_path"].endswith(f".{name}")


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_part_of_each_role_trains_by_its_name(kind, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = TOGETHER[kind].split()
    assert main(["train", *SCALE, *words, "--out", str(tmp_path / "run")]) == 0
    assert len(records(tmp_path / "run")) == 2
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for option, name in pairwise(words):
        if option.removeprefix("--") in ROLES:
            assert stored[option[2:]]["class_path"].endswith(f".{name}")


def test_each_role_is_among_them():
    words = " ".join(TOGETHER.values()).split()
    assert ROLES.keys() <= {word[2:] for word in words if word.startswith("--")}


# The README's own commands train the others.
QUICK_MODELS = ("SemiAmortizedVAE", "TopDownVAE", "ConditionalVAE", "GMVAE")


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured")
@pytest.mark.parametrize(
    ("option", "name"),
    [
        pytest.param(option, name, marks=() if name in QUICK_MODELS else pytest.mark.slow)
        for option in ROLES
        for name in offered(option)
    ],
)
def test_every_offered_part_trains_by_its_name(option, name, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    # The last --network wins, and MLP's argument goes with it.
    tiny = SCALE if option == "network" else TINY
    words = [f"--{option}", name, *companions_of(option, name), "--out", str(tmp_path / "run")]
    assert main(["train", *tiny, "--data", "real.npy", *words]) == 0, capsys.readouterr().err
    assert len(records(tmp_path / "run")) == 2


# Every kind of data and program -------------------------------------------------------------------


def images(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    for label in ("cats", "dogs"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(0, 256, (5, 4)).astype("u1")
            Image.fromarray(pixels).save(folder / "images" / label / f"{i}.png")
    return folder / "images"


DATA = {
    "vectors": ("real.npy", "values as stored", "Normal", "-"),
    "counts": ("counts.npy", r"integers 0\.\.\d+", "Binomial", "-"),
    "binary with labels": ("binary.npz", r"integers 0\.\.1", "Bernoulli", r"\d+\.\d %"),
    "bytes": ("bytes.npy", r"integers 0\.\.255 dequantised", "Normal", "-"),
    "images": ("images", r"integers 0\.\.255 dequantised", "Normal", r"\d+\.\d %"),
}
# Latents that pictures have to cope with: without a mean, on a sphere, and others.
DRAWN = {"images": "AffineCoupling"}
DRAWN_WHEN_SLOW = ("VonMisesFisher", "Bernoulli", "Concrete", "Sylvester")


@pytest.mark.parametrize(
    ("kind", "posterior"),
    [
        *((kind, None) for kind in DATA if kind not in DRAWN),
        *(pytest.param(*drawn, marks=pytest.mark.pictures) for drawn in DRAWN.items()),
        *(
            pytest.param("vectors", name, marks=[pytest.mark.pictures, pytest.mark.slow])
            for name in DRAWN_WHEN_SLOW
        ),
    ],
)
def test_data_of_a_kind_train_end_to_end(kind, posterior, tmp_path, monkeypatch, capsys):
    name, observation, likelihood, probe = DATA[kind]
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    images(tmp_path)
    options = (
        ["--posterior", posterior, *companions_of("posterior", posterior)] if posterior else []
    )
    assert train("--data", name, *options, "--out", "run") == 0
    shown = capsys.readouterr()
    assert re.search(f"{observation}, {likelihood} likelihood", shown.err)
    table = table_of(shown.out)
    assert re.fullmatch(r"-?[\d.]+ \+- [\d.]+", table["test ELBO (nats per datum)"])
    assert re.fullmatch(probe, table["linear probe accuracy"])
    assert {path.name for path in Path("run").iterdir()} >= FILES
    assert Path("run/pictures").exists() is (posterior is not None)
    found = results(Path("run"))
    assert (found["epochs"], found["num_importance_samples"]) == (2, 2)
    assert table["test data"] == str(found["num_test"])
    report = Path("run/report.html").read_text()
    assert str(tmp_path) not in report
    assert "could not be drawn" not in report
    if posterior is None:
        return
    assert all(path.stat().st_size > 1000 for path in Path("run/pictures").glob("*.png"))
    assert report.count("data:image/png;base64,") == len(list(Path("run/pictures").iterdir())) >= 3


PROGRAMS = {
    "class": (PROGRAM, "--model", ":MyVAE", ["--model.hidden", "5", "--model.activation", "ReLU"]),
    "functions": (FUNCTIONS, "--model", "", []),
    "prior": (PRIOR, "--prior", ":StudentPrior", ["--prior.df", "7"]),
}


@pytest.mark.parametrize("kind", some(PROGRAMS, "functions", "prior"))
def test_a_users_own_file(kind, folder, tmp_path, capsys):
    """It trains; afterwards it has to be named again, and is then the program that was trained."""
    source, option, name, arguments = PROGRAMS[kind]
    file = tmp_path / f"own_{kind}.py"
    file.write_text(source)
    own = [option, f"{file}{name}"]
    out = tmp_path / "run"
    assert train("--data", folder / "real.npy", *own, *arguments, "--out", out) == 0
    before = results(out)
    assert before["num_parameters"] > 10
    capsys.readouterr()
    for command in (["evaluate", str(out)], ["train", "--resume", str(out)]):
        assert main(command) == 2
        assert "name" in capsys.readouterr().err
        pyro.clear_param_store()  # as in a process of its own
        assert main([*command, *own]) == 0, capsys.readouterr().err
        assert results(out) == before
    config = ["--config", str(out / "config.yaml"), *own, "--out", str(tmp_path / "again")]
    pyro.clear_param_store()
    assert main(["train", *config]) == 0
    assert records(tmp_path / "again") == records(out)


# Repeating, judging, drawing ----------------------------------------------------------------------


def test_the_configuration_repeats_the_run_to_the_same_bits(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse, calls = argparse.ArgumentParser.parse_known_args, []
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_known_args", lambda *a: calls.append(a) or parse(*a)
    )
    assert main(["train", "--config", str(trained / "config.yaml"), "--out", "again"]) == 0
    assert len(calls) == 1, "a command line is parsed once"
    assert same(final(Path("again")), final(trained))
    assert Path("again/config.yaml").read_text() == (trained / "config.yaml").read_text()


def test_another_seed_is_another_run(trained, tmp_path):
    config = ["--config", str(trained / "config.yaml")]
    assert main(["train", *config, "--seed", "1", "--out", str(tmp_path / "run")]) == 0
    assert records(tmp_path / "run") != records(trained)


def test_evaluating_repeats_the_results_exactly(trained, copy, capsys):
    for name in ("results.json", "report.html"):
        (copy / name).unlink()
    assert main(["evaluate", str(copy)]) == 0
    assert (copy / "results.json").read_bytes() == (trained / "results.json").read_bytes()
    assert main(["evaluate", str(copy), "--num-samples", "7"]) == 0
    assert json.loads((copy / "results.json").read_text())["num_importance_samples"] == 7
    assert "test ELBO" in capsys.readouterr().out


def test_evaluating_by_annealing_adds_its_numbers(trained, copy, capsys, monkeypatch):
    shorten_annealing(monkeypatch)
    small = ["--num-data", "3", "--num-temperatures", "2", "--num-chains", "2"]
    assert main(["evaluate", str(copy), "--ais", "--gaps", *small]) == 0
    table = table_of(capsys.readouterr().out)
    for name in ("AIS log-likelihood (nats per datum)", "inference gap (nats per datum)"):
        assert re.fullmatch(r"-?[\d.]+ \+- [\d.]+", table[name])
    found = json.loads((copy / "results.json").read_text())
    before = json.loads((trained / "results.json").read_text())
    assert found.items() >= before.items()
    gap, of_family, of_encoder = (
        found[f"{part}_gap_nats"] for part in ("inference", "approximation", "amortization")
    )
    assert gap == pytest.approx(of_family + of_encoder)
    assert (found["num_diagnosed"], found["num_simulated"]) == (3, 1)
    assert found["verdict"][0].startswith("layer z is ")


def test_too_few_temperatures_are_refused_before_anything_is_written(copy, capsys):
    before = (copy / "results.json").read_bytes()
    assert main(["evaluate", str(copy), "--ais", "--num-temperatures", "1"]) == 2
    assert "--num-temperatures 1: give 2 or more" in capsys.readouterr().err
    assert (copy / "results.json").read_bytes() == before


def test_samples_are_written_and_depend_on_the_seed(copy, tmp_path, capsys):
    drawn = []
    for seed in ("0", "0", "1"):
        out = tmp_path / f"{len(drawn)}.npy"
        arguments = [str(copy), "--num", "5", "--seed", seed, "--out", str(out)]
        assert main(["sample", *arguments]) == 0
        assert str(out) in capsys.readouterr().out
        drawn.append(np.load(out))
    assert drawn[0].shape == (5, 3)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.pictures
def test_pictures_are_drawn_anew(copy, capsys):
    assert main(["plot", str(copy)]) == 0
    drawn = list((copy / "pictures").iterdir())
    assert all(path.stat().st_size > 1000 for path in drawn)
    assert capsys.readouterr().out.count(".png: ") == len(drawn) >= 3


def test_paths_may_hold_spaces_and_letters_of_any_script(folder, tmp_path):
    place = tmp_path / "päth 图 with 'quotes'"
    place.mkdir()
    shutil.copy(folder / "real.npy", place / "dätä 1.npy")
    assert train("--data", place / "dätä 1.npy", "--out", place / "rün 1") == 0
    assert main(["evaluate", str(place / "rün 1")]) == 0


def test_the_run_folder_is_named_after_data_and_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train("--data", folder / "real.npy") == 0
    (out,) = Path("runs").iterdir()
    assert re.fullmatch(r"real-VAE-\d{8}-\d{6}-\d+", out.name)


def test_a_configuration_of_ones_own(folder, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("latent: 3\nprior: {class_path: DiagonalNormal}\nlr: 1e-2\n")
    arguments = ["--config", config, "--latent", "2", "--out", tmp_path / "run"]
    assert train("--data", folder / "real.npy", *arguments) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["latent"], stored["lr"]) == (2, 0.01)
    assert stored["prior"]["class_path"].endswith("DiagonalNormal")


# Stopping and going on ----------------------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing(trained, copy, capsys):
    assert main(["train", "--resume", str(copy)]) == 0
    assert "test ELBO" in capsys.readouterr().out
    assert same(final(copy), final(trained))
    assert results(copy) == results(trained)


CHANGES = {
    "--seed 3": "--seed 3: the run was started with 0",
    "--network.hidden [9]": r"--network.hidden \[9\]: the run was started with \[8\]",
    "--prior DiagonalNormal": "--prior pyro_vae.*DiagonalNormal: the run was started with .*Stand",
    "--likelihood Normal --likelihood.scale 2": "--likelihood.scale 2",
    "--out elsewhere": "--out",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_with_its_own_options(change, trained, capsys):
    before = final(trained)
    assert main(["train", "--resume", str(trained), *change.split()]) == 2
    assert re.search(CHANGES[change], capsys.readouterr().err)
    assert same(final(trained), before)


def signalled(signum: int, epoch: int, out: Path, *arguments: str) -> tuple[int, str]:
    """Run a command in a child that gets a signal at an epoch's end; return status and words."""
    append, said = MetricsFile.append, out.with_name("said")

    def signalling(self: MetricsFile, record: dict) -> None:
        append(self, record)
        if record["epoch"] == epoch:
            os.kill(os.getpid(), signum)

    def run() -> None:
        MetricsFile.append = signalling
        with said.open("w") as sys.stderr:
            status = main(["train", *arguments])
        os._exit(status)

    _, status = os.waitpid(child(run), 0)
    return os.waitstatus_to_exitcode(status), said.read_text()


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_and_killed_run_goes_on_to_the_same_bits(signum, status, folder, tmp_path):
    """Killed in the middle of what it does after it was stopped."""
    arguments = [*TINY, "--data", str(folder / "real.npy"), "--epochs", "8"]
    assert main(["train", *arguments, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "stopped"
    found, said = signalled(signum, 3, out, *arguments, "--out", str(out))
    assert found == status, said
    (line,) = (line for line in said.splitlines() if line.startswith("pyro-vae: "))
    assert "stopped in epoch" in line
    assert f"pyro-vae train --resume {out}" in line
    assert "Traceback" not in said
    found, said = signalled(signal.SIGKILL, 5, out, "--resume", str(out))
    assert found == -signal.SIGKILL, said
    assert len(records(out)) == 5
    assert main(["train", "--resume", str(out)]) == 0
    assert same(final(out), final(tmp_path / "whole"))


def test_a_reader_that_has_left_is_no_error(tmp_path):
    """As in ``pyro-vae list | head -1``."""
    read, write = os.pipe()
    os.close(read)

    def listing() -> None:
        os.dup2(write, 1)
        os.dup2(os.open(tmp_path / "said", os.O_CREAT | os.O_WRONLY), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = main(["list"])
        sys.stdout.flush()  # as at the end of a process
        os._exit(status)

    _, status = os.waitpid(child(listing), 0)
    os.close(write)
    assert os.waitstatus_to_exitcode(status) == 1
    assert (tmp_path / "said").read_text() == ""


def test_a_warm_up_of_the_kl_is_one_flag_and_a_report_has_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    spelt = ["--objective", "BetaVAE(Scheduled(Linear(0, 1, until=0.5)))"]
    for out, options in (("flag", ["--kl-warmup", "0.5"]), ("spelt", spelt), ("plain", [])):
        assert train("--data", str(tmp_path / "real.npy"), "--out", out, *options) == 0
    found = [
        json.loads(Path(out, "results.json").read_text()) for out in ("flag", "spelt", "plain")
    ]
    elbos = [each["test_elbo_nats"] for each in found]
    assert elbos[0] == elbos[1] != elbos[2]
    report = Path("flag", "report.html").read_text()
    assert "real.npy" in report
    assert str(tmp_path) not in report.partition("Repeat this run")[2].partition("</pre>")[2]
