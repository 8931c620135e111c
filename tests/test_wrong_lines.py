"""Wrong command lines, made by chance under a seed: each ends in one line, and status 2."""

from __future__ import annotations

import random
import re

import pytest
from command import TINY, write_data

from pyro_vae.cli import main

VALUES = (
    "",
    " ",
    "abc",
    "-1",
    "nan",
    "1e400",
    "9" * 24,
    "[1,2",
    "{a: b",
    "é漢字",
    "a\nb",
    "0x1g",
    "--",
    "(",
    "Normal(",
    "IWAE(abc)",
    "!!python/object:os.system",
    "no.such.Thing",
    "missing.py:A",
    "3x",
    "%s",
    '{"class_path": 1}',
    "os.system",
)
OPTIONS = {
    "train": (
        "--missing",
        "--observation",
        "--model",
        "--prior",
        "--likelihood",
        "--posterior",
        "--network",
        "--encoder",
        "--latent",
        "--objective",
        "--turns",
        "--schedule",
        "--epochs",
        "--batch-size",
        "--lr",
        "--num-samples",
        "--engine",
        "--seed",
        "--config",
        "--prior.nope",
        "--objective.num_particles",
        "--latents",
        "--.",
        "--data",
    ),
    "compare": ("--objectives", "--epochs", "--num-rows", "--lr", "--config", "--objective"),
    "evaluate": ("--num-samples", "--num-chains", "--seed", "--weights", "--nope"),
    "sample": ("--num", "--seed", "--nope"),
    "trian": ("--epochs",),
}
FOREIGN = re.compile(
    r"jsonargparse|argparse|Traceback|a bug|numpy|NoneType|<class|typing|Namespace|Parser key|"
    r"Not of type|instantiatable|determine a constructor"
)


def wrong_lines(seed: int, num: int) -> list[list[str]]:
    chance = random.Random(seed)
    lines = []
    for _ in range(num):
        command = chance.choice(["train"] * 4 + list(OPTIONS))
        given = [*TINY, "--data", "real.npy"] if command == "train" else []
        given = ["no run"] if command in ("evaluate", "sample") else given
        option, value = chance.choice(OPTIONS[command]), chance.choice(VALUES)
        pair = [f"{option}={value}"] if chance.random() < 0.5 else [option, value]
        # What is wrong with another option is said, or this: nothing is trained.
        lines.append([command, *given, *pair, "--epochs", "x"])
    return lines


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_line_ends_in_one_line(seed, tmp_path, monkeypatch, capsys):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in wrong_lines(seed, 12):
        assert main(line) == 2, line
        said = capsys.readouterr().err
        assert said.startswith("pyro-vae: "), (line, said)
        assert said.count("\n") == 1, (line, said)
        assert not FOREIGN.search(said), (line, said)
        assert len(said) < 500, (line, said)


WORDS = {
    "prior: {class_path: NoSuch}": "--prior NoSuch: no such prior",
    "out: 3": "--out: expected the name of a file or folder",
    "likelihood: {init_args: {scale: 1}}": r"--likelihood.scale: name a class that takes it",
    "prior: !!python/object/apply:os.system [ls]": "line 1: a tag .* is not taken",
}


@pytest.mark.parametrize("text", WORDS)
def test_a_file_of_options_is_answered_without_the_parsers_words(text, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(text)
    assert main(["train", *TINY, "--config", str(tmp_path / "options.yaml")]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(WORDS[text], said), said
    assert not FOREIGN.search(said), said


def test_an_argument_of_a_part_that_is_not_named_asks_for_the_name(capsys):
    assert main(["train", "--objective.num_particles", "3"]) == 2
    assert "--objective.num_particles: name a class that takes it" in capsys.readouterr().err
