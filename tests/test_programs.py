"""The program that a command line stands for: its class, its layers, and how a class is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command import train, write_data
from torch import nn

from pyro_vae import datasets
from pyro_vae.cli import main, runs
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.options import latent_sizes, training_parser
from pyro_vae.cli.parser import as_dict, as_text
from pyro_vae.cli.programs import latent_shapes
from pyro_vae.models import VAE, HierarchicalVAE, LadderVAE, TopDownVAE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


def opened(folder: Path, *arguments: str, data: str = "binary.npz") -> tuple[nn.Module, str]:
    """Return the program of a command line, and its configuration."""
    words = ["--data", str(folder / data), "--network.hidden", "[4]", *arguments]
    config, dataset = training_parser().parse(words), datasets.load(str(folder / data))
    settle(config, dataset)
    return runs.open_run(config, dataset).program, as_text(as_dict(config))


def sizes(program: nn.Module) -> list[int]:
    return [part.family.event_shape[0] for part in program.posteriors]


def test_one_size_makes_a_vae_and_several_a_hierarchy(folder) -> None:
    assert type(opened(folder)[0]) is VAE
    assert type(opened(folder, "--latent", "3")[0]) is VAE
    program, text = opened(folder, "--latent", "3,2")
    assert type(program) is HierarchicalVAE
    assert sizes(program) == [3, 2]
    config = yaml.safe_load(text)
    assert config["latent"] == "3,2"
    assert config["model"]["class_path"] == "pyro_vae.models.HierarchicalVAE"


def test_a_named_program_has_its_own_sizes_unless_they_are_given(folder) -> None:
    ladder, text = opened(folder, "--model", "LadderVAE")
    assert sizes(ladder) == [64, 32, 16]
    assert yaml.safe_load(text)["latent"] == "64,32,16"
    assert sizes(opened(folder, "--model", "LadderVAE", "--latent", "5")[0]) == [5]
    assert opened(folder, "--model", "VAE")[0].posterior.family.event_shape == (40,)


def test_layers_of_images(folder) -> None:
    arguments = ("--model", "TopDownVAE", "--model.channels", "4", "--likelihood", "Normal")
    program, text = opened(folder, *arguments, "--latent", "2x3x3,3", data="bytes.npy")
    assert type(program) is TopDownVAE
    assert [block.prior_family.event_shape for block in program.blocks] == [(2, 3, 3), (3, 2, 2)]
    assert program.blocks[0].channels == 4
    assert yaml.safe_load(text)["latent"] == "2x3x3,3"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("40", 40),
        (40, 40),
        ("[64, 32]", "64,32"),
        ([64, 32, 16], "64,32,16"),
        ("64, 32", "64,32"),
        ("8x14x14", "8x14x14"),
    ],
)
def test_sizes_are_stored_as_one_word(given, expected) -> None:
    assert latent_sizes(given) == expected
    assert latent_sizes(expected) == expected


def test_sizes_become_shapes() -> None:
    assert latent_shapes(40) == ((40,),)
    assert latent_shapes("64,8x7x7") == ((64,), (8, 7, 7))


BY_NAME = """
from pyro_vae.models import HierarchicalVAE, LadderVAE, VAE

class Mine(HierarchicalVAE):
    def __init__(self, priors, likelihood, posteriors, event_shape, latent_shapes, extra: int = 1):
        super().__init__(priors=priors, likelihood=likelihood, posteriors=posteriors)
        self.given = event_shape, latent_shapes, extra

class MyLadder(LadderVAE):
    pass

class Single(VAE):
    def __init__(self, prior, likelihood, posterior, extra: int = 1):
        super().__init__(prior=prior, likelihood=likelihood, posterior=posterior)
        self.extra = extra

    @classmethod
    def assemble(cls, *args, **parts):
        return VAE.assemble(*args, **parts)
"""


def test_a_users_hierarchy_is_given_what_its_arguments_are_named_after(folder) -> None:
    (folder / "by_name.py").write_text(BY_NAME)
    file = str(folder / "by_name.py")
    arguments = ("--latent", "3,2", "--model", f"{file}:Mine", "--model.extra", "5")
    mine, _ = opened(folder, *arguments)
    assert mine.given == ((3,), ((3,), (2,)), 5)
    ladder, _ = opened(folder, "--latent", "3,2", "--model", f"{file}:MyLadder")
    assert isinstance(ladder, LadderVAE)
    assert len(ladder.upward) == 2
    with pytest.raises(ValueError, match="Single has one layer"):
        opened(folder, "--latent", "3,2", "--model", f"{file}:Single")


def test_an_argument_that_assemble_does_not_take_reaches_the_constructor(folder) -> None:
    (folder / "by_name.py").write_text(BY_NAME)
    arguments = ("--model", f"{folder / 'by_name.py'}:Single", "--model.extra", "7")
    assert opened(folder, *arguments)[0].extra == 7


@pytest.mark.pictures
def test_a_hierarchy_is_trained_judged_drawn_and_resumed_by_the_command(
    folder, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "run"
    data = str(folder / "bytes.npy")
    assert train("--data", data, "--latent", "3,2", "--out", str(out)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["num_units"] == 5
    assert {"units.png", "layers_samples.png", "layers_reconstructions.png"} <= {
        p.name for p in (out / "pictures").iterdir()
    }
    monkeypatch.setattr("pyro_vae.cli.pictures.draw", lambda *args: [])  # once is enough
    assert main(["train", "--resume", str(out)]) == 0
    assert main(["sample", str(out), "--num", "3"]) == 0
    assert "latent: 3,2" in (out / "config.yaml").read_text()


def test_no_weights_depend_on_how_the_program_was_named(folder) -> None:
    states = [opened(folder, "--latent", "3", *model)[0] for model in ((), ("--model", "VAE"))]
    one, other = (list(program.state_dict().values()) for program in states)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
