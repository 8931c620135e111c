"""A guide that sees corrupted data: still a bound, on clean data wherever numbers are told."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyro.infer
import pytest
import torch
import yaml
from bits import same
from command import train as command
from command import write_data
from exact import Gaussian, hermite, injected
from laws import Pair
from quick import some
from recorded import both
from runs import child, final
from torch import nn

import pyro_vae
from pyro_vae import SVI, VAE, evaluation
from pyro_vae.cli import main
from pyro_vae.components import (
    MLP,
    CategoricalSequence,
    DiagonalNormal,
    GaussianNoise,
    Incomplete,
    MaskingNoise,
    Normal,
    Observed,
    Recurrent,
    RecurrentDecoder,
    SaltAndPepperNoise,
    VampPrior,
    WordDropout,
)
from pyro_vae.inference import ELBO, IWAE, RWS, Corrupted, KLWeight, Probe, Program, site_terms
from pyro_vae.models import ConditionalVAE

SMALL = partial(MLP, hidden=(8,))
adam = partial(torch.optim.Adam, lr=0.01)
fit = partial(pyro_vae.fit, engine="eager")
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
NOISES = {
    "Gaussian": partial(GaussianNoise, 0.4),
    "masking": partial(MaskingNoise, 0.3),
    "salt and pepper": partial(SaltAndPepperNoise, 0.3),
}


def built(**parts) -> VAE:
    torch.manual_seed(0)
    options = {"likelihood": Normal, "network": SMALL, **parts}
    return VAE.assemble((3,), (2,), **options)


def spoken(num_symbols: int = 6, **options) -> tuple[VAE, torch.Tensor]:
    """Return a VAE of sentences, of which 0 is padding and the encoder embeds more symbols."""
    torch.manual_seed(0)
    vae = VAE.assemble(
        (5,), (2,), likelihood=partial(CategoricalSequence, num_categories=5, padding=0),
        encoder=partial(Recurrent, num_symbols=num_symbols, padding=0, hidden=4, **options),
        decoder=partial(RecurrentDecoder, hidden=4),
    )  # fmt: skip
    lengths = torch.randint(2, 6, (30, 1))
    x = torch.where(torch.arange(5) < lengths, torch.randint(1, 5, (30, 5)), 0)
    return vae, x.float()


def weights_of(vae: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vae.state_dict().items()}


# ---------------------------------------------------------------------------------- the bound


SCALE, UNIT = 0.5, torch.tensor([1.5, 0.7], dtype=torch.float64)


class Known(GaussianNoise):
    """Gaussian noise whose draws are given, ``[rows, 2]``."""

    def __init__(self, nodes: torch.Tensor) -> None:
        super().__init__(SCALE)
        self.unit, self.nodes = UNIT, nodes

    def corrupted(self, x):
        drawn, torch.randn_like = torch.randn_like, lambda _: self.nodes
        try:
            return super().corrupted(x)
        finally:
            torch.randn_like = drawn


def mean_value(objective, *, of_model: bool = False) -> torch.Tensor:
    """Integrate an objective's value over the noise of data and latents, [N]."""
    bed, num_particles = Gaussian(), objective.num_particles
    nodes, weigh = hermite(12 if num_particles == 1 else 6, 1, 2 + num_particles)
    of_data, of_latents = nodes[0].split([2, num_particles], -1)
    num_rows = len(bed.x)
    noise = Known(of_data.repeat_interleave(num_rows, 0))
    model = Corrupted(noise)(bed.model) if of_model else bed.model
    program = Program(model, Corrupted(noise)(bed.guide))
    x = bed.x.repeat(len(of_data), 1)
    layout = Probe(program, x).layout
    drawn = of_latents.T.unsqueeze(-1).repeat_interleave(num_rows, 1)
    with program.running(), torch.no_grad(), injected(drawn):
        value = objective.value(site_terms(program, layout, x, num_particles=num_particles))
    return (weigh(None) * value.reshape(-1, num_rows)).sum(0)


def closed_form() -> torch.Tensor:
    """Return E[ELBO] over the noise: it is quadratic in q's mean, whose variance is known."""
    bed = Gaussian()
    with torch.no_grad():
        loc, variance = bed.x @ bed.a + bed.c, (2 * bed.s).exp()
        residual = bed.x - loc @ bed.w - bed.b
        precision = bed.w.square().sum() / bed.noise_scale**2
        fit = residual.square().sum(-1) / bed.noise_scale**2 + precision * variance
        constant = 2 * math.log(2 * math.pi * bed.noise_scale**2)
        kl = 0.5 * (loc.squeeze(-1).square() + variance - 1 - variance.log())
        clean = -0.5 * (fit + constant) - kl
        spread = (SCALE * UNIT * bed.a.squeeze(-1)).square().sum()
        return clean - 0.5 * (1 + precision) * spread


def test_the_expected_bound_is_the_closed_form_and_below_log_p():
    found = mean_value(ELBO())
    torch.testing.assert_close(found, closed_form(), rtol=0, atol=1e-10)
    assert bool((found < Gaussian().log_p()).all())
    # Mutant: a model that scores the corrupted data too.
    assert bool(((mean_value(ELBO(), of_model=True) - closed_form()).abs() > 0.01).all())


def test_the_bound_of_several_particles_is_one_too_and_is_larger():
    found = mean_value(IWAE(2))
    assert bool((found > closed_form()).all())
    assert bool((found < Gaussian().log_p()).all())


def test_a_model_that_scores_the_corrupted_data_would_exceed_log_p():
    """What the bound would be with the corruption around the whole program."""
    bed = Gaussian()
    bed.x = 20 * bed.x
    hidden = MaskingNoise(1.0)
    for model, is_bound in ((bed.model, True), (Corrupted(hidden)(bed.model), False)):
        program = Program(model, Corrupted(hidden)(bed.guide))
        layout = Probe(program, bed.x).layout
        with program.running():
            found = ELBO(200).value(site_terms(program, layout, bed.x, num_particles=200))
        assert bool((found < bed.log_p()).all()) == is_bound


# ------------------------------------------------------------------------------------ the noises


@pytest.mark.parametrize("build", NOISES.values(), ids=NOISES)
def test_a_noise_is_silent_in_evaluation_and_leaves_missing_values(build):
    noise, x = build(), torch.where(torch.rand(50, 3) < 0.2, math.nan, X[:1] + torch.randn(50, 3))
    noise.adapt_inputs(x) if hasattr(noise, "adapt_inputs") else None
    corrupted = noise(x)
    assert torch.equal(corrupted.isnan(), x.isnan())
    assert not torch.equal(corrupted.nan_to_num(), x.nan_to_num())
    state = torch.get_rng_state()
    assert noise.eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("build", NOISES.values(), ids=NOISES)
def test_each_datum_has_noise_of_its_own(build):
    noise, x = build(), torch.ones(400, 5)
    rows = noise(x)
    assert len({*map(tuple, rows.tolist())}) > 2
    assert not torch.equal(rows, noise(x))


def test_gaussian_noise_has_the_units_of_each_column():
    noise, x = GaussianNoise(0.5), torch.randn(10_000, 3) * torch.tensor([1.0, 1e4, 0.0]) + 7
    noise.adapt_inputs(x)
    added = noise(x) - x
    # Six standard errors of a deviation of 10,000 numbers: false once in 1e9.
    wanted = 0.5 * x[:, :2].std(0)
    assert bool(((added[:, :2].std(0) / wanted - 1).abs() < 6 / math.sqrt(20_000)).all())
    assert not added[:, 2].any()  # no deviation, no noise
    images = 5.0 + 3.0 * torch.randn(100, 2, 4, 4)
    noise.adapt_inputs(images)
    assert noise.unit.shape == (2, 1, 1)


def test_masking_replaces_its_part_by_its_value():
    replaced = MaskingNoise(0.3, value=-2.0)(torch.ones(100_000)) == -2.0
    # Six standard errors.
    assert abs(float(replaced.float().mean()) - 0.3) < 6 * math.sqrt(0.21 / 100_000)
    assert torch.equal(MaskingNoise(1.0)(X), torch.zeros_like(X))
    assert torch.equal(MaskingNoise(0.0)(X), X)


def test_salt_and_pepper_are_the_ends_of_each_column():
    noise, x = SaltAndPepperNoise(0.4), torch.rand(50_000, 2) * torch.tensor([1.0, 100.0]) - 3
    x[0, 0] = math.nan
    noise.adapt_inputs(x)
    corrupted = noise(x)
    ends = torch.stack([noise.lowest, noise.highest])
    expected = torch.stack([x.nan_to_num(math.inf).amin(0), x.nan_to_num(-math.inf).amax(0)])
    assert torch.equal(ends, expected)
    for end in ends:  # a fifth each; six standard errors
        part = (corrupted == end).float().mean(0)
        assert bool(((part - 0.2).abs() < 6 * math.sqrt(0.16 / 50_000)).all())


def test_word_dropout_leaves_padding():
    x = torch.tensor([3.0, 1.0, 2.0, 0.0, 0.0]).repeat(20_000, 1)
    corrupted = WordDropout(5, probability=0.25, padding=0)(x)
    assert torch.equal(corrupted[:, 3:], x[:, 3:])
    words = corrupted[:, :3]
    assert bool(((words == 5) | (words == x[:, :3])).all())
    assert abs(float((words == 5).float().mean()) - 0.25) < 6 * math.sqrt(0.1875 / 60_000)
    assert bool((WordDropout(5, probability=1.0)(x) == 5).all())


BAD = {
    "scale=-0.1": lambda: GaussianNoise(-0.1),
    "scale=nan": lambda: GaussianNoise(math.nan),
    "scale=inf": lambda: GaussianNoise(math.inf),
    "scale='a little'": lambda: GaussianNoise("a little"),
    "probability=1.5": lambda: MaskingNoise(1.5),
    "probability=-0.5": lambda: SaltAndPepperNoise(-0.5),
    "probability=nan": lambda: WordDropout(1, probability=math.nan),
    "value=inf": lambda: MaskingNoise(0.5, value=math.inf),
    "unknown=-1": lambda: WordDropout(-1),
    "unknown=0: it is the padding": lambda: WordDropout(0, padding=0),
    "noise=0.3: give a module": lambda: Corrupted(0.3),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_noise_is_refused(message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        BAD[message]()


# ---------------------------------------------------------------------------- around a program


def test_a_corrupted_guide_keeps_its_signature_modules_and_names():
    vae = built()
    noisy = Program(vae.model, Corrupted(GaussianNoise())(vae.guide))
    assert inspect.signature(noisy.guide) == inspect.signature(vae.guide)
    assert noisy.modules == (vae,)
    assert noisy.parameters().keys() == Program(vae.model, vae.guide).parameters().keys()
    weight = KLWeight(0.5)
    outside = Program(weight(vae.model), weight(Corrupted(noise := GaussianNoise())(vae.guide)))
    inside = Program(weight(vae.model), Corrupted(noise)(weight(vae.guide)))
    assert outside.around == inside.around == (noise,)


@pytest.mark.parametrize("name", some(NOISES, "masking"))
def test_every_evaluation_is_on_clean_data_bit_for_bit(name):
    build = NOISES[name]
    vae, noise = built(prior=DiagonalNormal), build()
    pairs = (vae.guide, Corrupted(noise)(vae.guide))
    bounds, log_p = [], []
    for guide in pairs:
        torch.manual_seed(3)
        bounds.append(evaluation.elbo(vae.model, guide, X).elbo_nats)
        log_p.append(evaluation.log_likelihood(vae.model, guide, X, num_samples=5))
    assert bounds[0] == bounds[1]
    assert same(log_p[0], log_p[1])
    assert noise.training
    starts = [fit(vae.model, guide, X, epochs=0).start for guide in pairs]
    assert same(*starts)
    # Mutant: a noise that evaluation does not reach.
    deaf = build()
    deaf.eval = lambda: deaf
    mutant = Program(vae.model, Corrupted(deaf)(vae.guide))
    with mutant.evaluating(seed=0):
        assert deaf.training


def test_training_goes_on_from_another_start_than_without_noise():
    records = []
    for noise in (GaussianNoise(0.0), GaussianNoise(0.5)):
        vae = built()
        done = fit(vae.model, Corrupted(noise)(vae.guide), X, epochs=2, batch_size=20)
        records.append(done.history[-1])
    assert records[0]["validation_elbo_nats"] != records[1]["validation_elbo_nats"]


def test_no_unit_of_the_data_changes_what_is_learned():
    factor = 2.0**10  # exact in binary
    found = []
    for x in (X, factor * X):
        vae = built()
        noise = GaussianNoise(2.0)
        done = fit(vae.model, Corrupted(noise)(vae.guide), x, epochs=9, batch_size=8)
        found.append(done.history[-1]["validation_elbo_nats"])
    assert found[0] == pytest.approx(found[1] + 3 * math.log(factor), abs=1e-3)
    # Mutant: noise in the data's own numbers.
    vae = built()
    mutant = GaussianNoise(2.0)
    mutant.known = True
    done = fit(vae.model, Corrupted(mutant)(vae.guide), factor * X, epochs=9, batch_size=8)
    assert abs(done.history[-1]["validation_elbo_nats"] - found[1]) > 1e-2


def test_a_trained_program_is_met_by_a_new_noise():
    vae = built()
    fit(vae, X, epochs=1)
    noise = GaussianNoise(0.5)
    before = weights_of(vae)
    fit(vae.model, Corrupted(noise)(vae.guide), 10 * X, epochs=1)
    assert float(noise.unit.mean()) == pytest.approx(10 * float(X.std()), rel=0.3)
    units = [name for name in before if name.endswith((".loc", ".scale"))]
    assert units
    assert all(torch.equal(vae.state_dict()[name], before[name]) for name in units)


def test_missing_values_stay_missing_to_the_encoder():
    x = torch.where(torch.rand(40, 3) < 0.2, math.nan, X)
    vae = built(likelihood=Incomplete, encoder=partial(Observed, SMALL))
    seen = []
    vae.posterior.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    noise = GaussianNoise(0.5)
    done = fit(vae.model, Corrupted(noise)(vae.guide), x, epochs=1, batch_size=16, engine="eager")
    assert math.isfinite(done.history[-1]["validation_elbo_nats"])
    assert all(bool(rows.isnan().any()) for rows in seen if len(rows) > 10)
    assert bool(noise.unit.isfinite().all())


OBJECTIVES = {"ELBO": ELBO, "IWAE": partial(IWAE, 3), "RWS": partial(RWS, 3, insomnia=0.5)}


def noisy_pair(build, **parts) -> Pair:
    vae = built(**parts)
    return Pair(vae.model, Corrupted(build())(vae.guide), (X[:6],))


@pytest.mark.parametrize(
    ("name", "objective"), [*zip(NOISES, OBJECTIVES.values(), strict=True)], ids=OBJECTIVES
)
def test_recorded_steps_are_eager_steps_bit_for_bit(name, objective):
    assert any(both(partial(noisy_pair, NOISES[name]), objective, sizes=(6, 6)).replayed)


def test_a_prior_that_shares_the_encoder_is_not_corrupted():
    prior = partial(VampPrior, num_pseudo_inputs=3)
    build = partial(noisy_pair, NOISES["Gaussian"], prior=prior, data=X)
    pair = build()
    seen = []
    pair.model.__self__.posterior.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pair.guide(*pair.args)
    assert not torch.equal(seen[0], X[:6])
    pair.model.__self__.prior()
    assert torch.equal(seen[-1], pair.model.__self__.prior.pseudo_inputs())


def test_pyros_own_svi_takes_a_corrupted_guide():
    vae = built()
    functions = (vae.model, Corrupted(GaussianNoise())(vae.guide))
    pyro.module("vae", vae)
    svi = pyro.infer.SVI(*functions, pyro.optim.Adam({"lr": 0.01}), ELBO())
    assert math.isfinite(svi.step(X))


def test_several_replicas_have_noises_of_their_own():
    vae = built()
    noise = GaussianNoise(0.4)
    done = fit(vae.model, Corrupted(noise)(vae.guide), X, epochs=3, batch_size=20, num_replicas=2)
    first, second = done.replicas
    assert first.history[0]["train_nats"] != second.history[0]["train_nats"]
    alone = built()
    fit(alone.model, Corrupted(GaussianNoise(0.4))(alone.guide), X, epochs=3, batch_size=20)
    for name, tensor in weights_of(alone).items():
        torch.testing.assert_close(vae.state_dict()[name], tensor, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------- symbols


def test_words_that_are_left_out_train_a_model_of_sentences():
    vae, x = spoken()
    noise = WordDropout(5, padding=0)
    seen = []
    embedding = next(part for part in vae.modules() if isinstance(part, nn.Embedding))
    embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    done = fit(vae.model, Corrupted(noise)(vae.guide), x, epochs=2, engine="eager")
    assert math.isfinite(done.history[-1]["validation_elbo_nats"])
    assert any(bool((symbols == 5).any()) for symbols in seen)
    assert not bool((seen[-1] == 5).any())  # of a validation


REFUSED = {
    "makes numbers between the symbols, of which the encoder embeds 6": GaussianNoise(),
    "unknown=6: the encoder embeds the symbols 0 to 5": WordDropout(6),
    "value=0.5: the encoder embeds the symbols 0 to 5": MaskingNoise(value=0.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_noise_that_an_encoder_of_symbols_cannot_read_is_refused(message):
    vae, x = spoken()
    guide = Corrupted(REFUSED[message])(vae.guide)
    with pytest.raises(ValueError, match=message):
        fit(vae.model, guide, x, epochs=1)
    with pytest.raises(ValueError, match=message):
        SVI(vae.model, guide, adam, ELBO()).step(x)


def test_word_dropout_is_refused_for_numbers():
    vae = built()
    with pytest.raises(ValueError, match="the encoder reads the data as numbers"):
        fit(vae.model, Corrupted(WordDropout(1))(vae.guide), X, epochs=1)


def test_labels_are_not_corrupted_and_no_symbols():
    torch.manual_seed(0)
    vae = ConditionalVAE.assemble((3,), (2,), num_classes=2, likelihood=Normal, network=SMALL)
    guide = Corrupted(GaussianNoise())(vae.guide)
    done = fit(vae.model, guide, (X, torch.arange(40) % 2), epochs=1)
    assert math.isfinite(done.history[-1]["validation_elbo_nats"])


# ------------------------------------------------------------------------- resume, command line


def run(out: Path, *, resume: bool, build=NOISES["Gaussian"]) -> None:
    torch.set_num_threads(1)
    vae = built()
    guide = Corrupted(build())(vae.guide)
    fit(
        vae.model, guide, X, out=out, resume=resume,
        epochs=4, batch_size=7, checkpoint_seconds=0.0,
    )  # fmt: skip


class Fading(nn.Module):
    """A noise of a user's own, which grows weaker from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        if not self.training:
            return x
        self.scale.mul_(0.9)
        return x + self.scale * torch.randn_like(x)


@pytest.mark.parametrize("name", some({**NOISES, "fading": Fading}, "fading"))
def test_a_killed_run_goes_on_to_the_same_bits(name, tmp_path):
    build = {**NOISES, "fading": Fading}[name]
    run(tmp_path / "whole", resume=False, build=build)
    number = itertools.count()
    drawn = torch.rand_like if name in ("masking", "salt and pepper") else torch.randn_like

    def dying(*args):
        if next(number) == 12:
            os._exit(137)
        return drawn(*args)

    def killed() -> None:
        setattr(torch, drawn.__name__, dying)
        run(tmp_path / "killed", resume=False, build=build)

    _, status = os.waitpid(child(killed), 0)
    assert os.WEXITSTATUS(status) == 137
    run(tmp_path / "killed", resume=True, build=build)
    assert same(final(tmp_path / "killed"), final(tmp_path / "whole"))


def test_a_run_goes_on_under_its_own_noise(tmp_path):
    run(tmp_path, resume=False)
    for build in (partial(GaussianNoise, 0.2), NOISES["masking"]):
        with pytest.raises(ValueError, match=r"corruption: .*GaussianNoise"):
            run(tmp_path, resume=True, build=build)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


def test_a_denoising_vae_is_a_vae_and_an_option(folder, tmp_path, capsys):
    data = folder / "real.npy"
    noise = ["--corruption", "Gaussian", "--corruption.scale", "0.2"]
    assert command("--data", data, *noise, "--out", tmp_path / "noisy") == 0
    assert command("--data", data, "--out", tmp_path / "plain") == 0
    config = yaml.safe_load((tmp_path / "noisy/config.yaml").read_text())
    assert config["corruption"] == {
        "class_path": "pyro_vae.components.GaussianNoise", "init_args": {"scale": 0.2},
    }  # fmt: skip
    noisy, plain = (final(tmp_path / name)[0]["weights"] for name in ("noisy", "plain"))
    assert noisy.keys() == plain.keys()
    assert not same(noisy, plain)
    told = (tmp_path / "noisy/results.json").read_bytes()
    assert main(["evaluate", str(tmp_path / "noisy")]) == 0
    assert (tmp_path / "noisy/results.json").read_bytes() == told
    again = shutil.copytree(tmp_path / "noisy", tmp_path / "again")
    capsys.readouterr()
    for change in (["--corruption.scale", "0.3"], ["--corruption", "Masking"]):
        assert main(["train", "--resume", str(again), *change]) == 2
        assert "the run was started with" in capsys.readouterr().err
    assert main(["train", "--resume", str(again)]) == 0


@pytest.mark.slow
def test_a_denoising_autoencoder_is_an_autoencoder_and_an_option(folder, tmp_path):
    options = ["--model", "Autoencoder", "--corruption", "MaskingNoise(0.5)"]
    for name, words in (("noisy", options), ("plain", options[:2])):
        assert command("--data", folder / "real.npy", *words, "--out", tmp_path / name) == 0
    noisy, plain = (final(tmp_path / name)[0] for name in ("noisy", "plain"))
    assert noisy["weights"].keys() == plain["weights"].keys()
    assert not same(noisy["weights"], plain["weights"])
    assert noisy["progress"]["start"].keys() == plain["progress"]["start"].keys()
    assert same(noisy["progress"]["start"], plain["progress"]["start"])  # on clean data


LINES = {
    "--corruption.scale -1": "--corruption.scale -1.0: the noise's scale is finite",
    "--corruption Masking --corruption.probability 1.5": "--corruption.probability 1.5: the part",
    "--corruption.scale nan": "--corruption.scale nan: expected",
    "--corruption MLP": "--corruption MLP: no such corruption",
    "--corruption WordDropout": "give --corruption.unknown too",
    "--corruption WordDropout(1)": "the encoder reads the data as numbers",
}


@pytest.mark.parametrize("options", LINES)
def test_a_bad_corruption_is_one_line_and_leaves_nothing(options, folder, tmp_path, capsys):
    words = options.split()
    start = [] if "--corruption" in words else ["--corruption", "GaussianNoise"]
    out = tmp_path / "run"
    assert command("--data", folder / "real.npy", *start, *words, "--out", out) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("pyro-vae: ")
    assert LINES[options] in last
    assert not out.exists()


def test_word_dropout_takes_the_padding_of_the_likelihood(folder, tmp_path):
    options = "--likelihood CategoricalSequence --encoder Recurrent --encoder.num_symbols 9"
    noise = "--decoder RecurrentDecoder --corruption WordDropout(8)"
    data = ["--data", folder / "sequences.npy", "--out", tmp_path / "run"]
    assert command(*data, *options.split(), *noise.split()) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["corruption"]["init_args"]["padding"] == 0
    assert int(np.load(folder / "sequences.npy").max()) < 8
