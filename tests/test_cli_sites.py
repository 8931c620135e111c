"""Programs of a user's own through the whole command: judged, drawn and sampled by site."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import FUNCTIONS, TINY

from pyro_vae.cli import main, pictures
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data
from pyro_vae.cli.options import training_parser

PROGRAMS = '''
import torch, pyro, pyro.distributions as dist
from pyro.nn import PyroModule
from torch import nn

class Base(PyroModule):
    def __init__(self):
        super().__init__()
        self.e, self.d = nn.Linear(16, 4), nn.Linear(2, 16)

    def guide(self, x, *labels):
        with pyro.plate("data", len(x)):
            a, b = self.e(x.reshape(len(x), 16) / 8).chunk(2, -1)
            pyro.sample("z", dist.Normal(a, nn.functional.softplus(b)).to_event(1))

    def model(self, x, *labels):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.observe(self.d(z), x.reshape(len(x), 16), *labels)


class Rows(Base):
    """Rows of counts, in a plate at dim -2."""

    def observe(self, raw, x):
        raw, x = raw.unflatten(-1, (4, 4)).movedim(-2, -3), x.reshape(-1, 4, 4)
        with pyro.plate("rows", 4, dim=-2):
            raw = raw.squeeze(-4) if raw.dim() > 3 else raw
            pyro.sample("x", dist.Binomial(9, logits=raw).to_event(1), obs=x.movedim(0, 1))


class Several(Base):
    """An image and how many of its pixels are bright, of another kind and shape."""

    def observe(self, raw, x):
        image = dist.Binomial(9, logits=raw.unflatten(-1, (1, 4, 4))).to_event(3)
        pyro.sample("image", image, obs=x.reshape(-1, 1, 4, 4))
        pyro.sample("bright", dist.Poisson(raw[..., 0].exp()), obs=(x > 5).float().sum(-1))


class Breaks(Base):
    """Cannot be run on the numbers of rows that pictures take."""

    def observe(self, raw, x):
        if len(x) == 64:
            raise ArithmeticError("no picture of 64")
        fn = dist.Binomial(9, logits=raw.unflatten(-1, (1, 4, 4))).to_event(3)
        pyro.sample("x", fn, obs=x.reshape(-1, 1, 4, 4))
'''


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("counts.npy", np.random.default_rng(0).integers(0, 10, (40, 4, 4)))
    return tmp_path


def trained(name: str, *more: str) -> dict:
    Path(f"programs_{name}.py").write_text(PROGRAMS)  # a module is loaded once
    program = ["--model", f"programs_{name}.py:{name}"]
    scale = ["--epochs", "2", "--batch-size", "8", "--num-samples", "2", "--device", "cpu"]
    words = ["train", *scale, *program, *more, "--data", "counts.npy", "--out", "run"]
    assert main(words) == 0
    return json.loads(Path("run/results.json").read_text())


def drawn() -> set[str]:
    return {path.stem for path in Path("run/pictures").glob("*.png")}


IMAGES = {"reconstructions", "samples", "interpolations", "traversals", "temperatures"}


@pytest.mark.pictures
def test_a_plate_inside_the_datum_is_judged_drawn_and_sampled(data) -> None:
    results = trained("Rows")
    assert results["bits_per_dim"] == pytest.approx(-results["test_elbo_nats"] / 16 / np.log(2))
    assert drawn() >= IMAGES
    assert main(["sample", "run", "--num", "5", "--model", "programs_Rows.py:Rows"]) == 0
    samples = np.load("run/samples.npy")
    assert samples.shape == (5, 4, 4)
    assert samples.min() >= 0
    assert samples.max() <= 9


OBSERVED = {  # how images of 0..9 are observed where nothing is said
    "dist.Binomial(9, logits=d(z))": ("x.reshape(-1, 9)", "AsFloat"),
    "dist.Normal(d(z), 1.0)": ("x.reshape(-1, 9)", "Dequantize"),
    "dist.Normal(d(z), 2.0)": ("x.reshape(-1, 9).log1p()", "AsFloat"),
    "dist.Bernoulli(logits=d(z))": ("(x.reshape(-1, 9) > 4).float()", "AsFloat"),
}


@pytest.mark.parametrize("fn", OBSERVED)
def test_what_a_program_observes_decides_how(fn: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    obs, expected = OBSERVED[fn]
    file = f"own_{list(OBSERVED).index(fn)}.py"
    source = FUNCTIONS.replace("Linear(3, 2)", "Linear(9, 2)").replace("(2, 3)", "(2, 9)")
    source = source.replace("dist.Normal(decoder(z), 1.0)", fn.replace("d(z)", "decoder(z)"))
    source = source.replace("obs=x", f"obs={obs}").replace("encoder(x)", "encoder(x.flatten(1))")
    Path(file).write_text(source)
    np.save("x.npy", np.random.default_rng(0).integers(0, 10, (30, 3, 3)).astype("u1"))
    config = training_parser().parse(["--data", "x.npy", "--model", file])
    settle(config, load_data(config.data, config))
    assert config.observation.name == expected


@pytest.mark.pictures
def test_several_sites_are_judged_drawn_and_sampled_by_name(data, capsys) -> None:
    results = trained("Several", "--likelihood", "Normal", "--latent", "7")
    shown = capsys.readouterr()
    # Neither the first line nor the configuration say what the program does not use.
    assert "integers 0..9, Several (image ~ Binomial, bright ~ Poisson), on cpu" in shown.err
    assert "--latent, --likelihood: not used, since Several has no such argument" in shown.err
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    of_parts = {"prior", "likelihood", "posterior", "network", "encoder", "decoder", "latent"}
    assert not kept.keys() & of_parts
    assert kept["observation"]["class_path"].endswith("AsFloat")
    by_site = results["test_site_distortion_nats"]
    assert set(by_site) == {"image", "bright"}
    assert sum(by_site.values()) == pytest.approx(results["test_distortion_nats"])
    assert results["bits_per_dim"] is None
    assert "distortion, reconstruction NLL of bright (nats per datum)" in shown.out
    assert drawn() >= {f"{name}_image" for name in IMAGES}
    assert drawn() >= {"reconstructions_other", "samples_other"}
    assert main(["sample", "run", "--num", "5", "--model", "programs_Several.py:Several"]) == 0
    with np.load("run/samples.npz") as samples:
        assert {name: samples[name].shape for name in samples} == {
            "image": (5, 1, 4, 4),
            "bright": (5,),
        }
    assert Path("run/samples_image.png").exists()
    said = ["--model", "programs_Several.py:Several", "--out", "x.npy"]
    assert main(["sample", "run", *said]) == 2
    assert "several sites (image, bright); end the file in .npz" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:.*could not be made")
@pytest.mark.pictures
def test_a_picture_that_fails_takes_no_number_away(data, capsys, monkeypatch) -> None:
    def broken(*args, **options):
        assert Path("run/results.json").exists()
        raise ZeroDivisionError("no plane")

    monkeypatch.setattr(pictures.plots, "latent_scatter", broken)
    results = trained("Breaks")
    assert np.isfinite(results["test_log_likelihood_nats"])
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 2
    assert "the picture 'samples' could not be made" in said[0]
    assert "ArithmeticError: no picture of 64" in said[0]
    assert "the picture 'latents' could not be made: ZeroDivisionError: no plane" in said[1]
    assert drawn() >= IMAGES - {"samples"}
    page = Path("run/report.html").read_text()
    assert "This picture could not be drawn: " in page
    assert "ArithmeticError: no picture of 64" in page
    assert "Means of x for z drawn from the prior" in page


@pytest.mark.filterwarnings("default:.*could not be made")
def test_numbers_that_fail_take_no_other_away(data, capsys, monkeypatch) -> None:
    def broken(*args, **options):
        raise RuntimeError("not today")

    optional = ("unit_activity", "mutual_information", "linear_probe")
    for name in optional:
        monkeypatch.setattr(f"pyro_vae.evaluation.{name}", broken)
    np.savez("counts.npz", x=np.load("counts.npy"), y=np.arange(40) // 2 % 2)
    assert main(["train", *TINY, "--data", "counts.npz", "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert np.isfinite(results["test_elbo_nats"])
    shown = capsys.readouterr()
    assert "test ELBO" in shown.out
    assert shown.err.count("could not be made: RuntimeError: not today") == len(optional)
