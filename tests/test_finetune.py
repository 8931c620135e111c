"""A program's encoder as a plain module, and what it is worth where few data are labelled."""

from __future__ import annotations

import copy
import json
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from command import train, tree
from torch import nn

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.cli import main
from pyro_vae.components import MLP, Binomial, NeuralSpline, Normal
from pyro_vae.datasets import Data
from pyro_vae.laboratory import Classifier, Encoder, finetune
from pyro_vae.laboratory.finetune import accuracy
from pyro_vae.models import Autoencoder, ConditionalVAE, HierarchicalVAE, LadderVAE

SMALL = partial(MLP, hidden=(8,))
QUICK = {"epochs": 2, "batch_size": 16, "device": "cpu", "progress": False}


def clusters(num_rows=90):
    """Three classes around corners of a triangle, in units of their own."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(num_rows) % 3
    corners = 3.0 * torch.eye(3)
    x = corners[labels] + torch.randn(num_rows, 3, generator=generator)
    return Data(x * torch.tensor([1.0, 20.0, 0.1]) + 50.0, labels=labels)


class Normalized(nn.Module):
    """A network with statistics that move, and noise, while it is trained."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.out_shape = out_shape
        self.layers = nn.Sequential(
            nn.Linear(math.prod(in_shape), 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
            nn.Linear(8, math.prod(out_shape)),
        )  # fmt: skip

    def forward(self, x):
        flat = self.layers(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], *self.out_shape)


class Plain(nn.Module):
    """A program of one's own, whose encoder is no part of ours."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def assembled(kind, latents=(2,), **parts):
    given = {"likelihood": Normal, "network": SMALL, "data": clusters().x, **parts}
    return kind.assemble((3,), latents, **given)


PROGRAMS = {
    "VAE": lambda: assembled(VAE, network=Normalized),
    "Autoencoder": lambda: assembled(Autoencoder),
    "HierarchicalVAE": lambda: assembled(HierarchicalVAE, ((3,), (2,))),
    "LadderVAE": lambda: assembled(LadderVAE, ((3,), (2,))),
    "a program of one's own": Plain,
}


@pytest.fixture(params=PROGRAMS)
def program(request):
    torch.manual_seed(0)
    made = PROGRAMS[request.param]()
    fit(made, clusters().x, **QUICK)
    return made


# The encoder --------------------------------------------------------------------------------------


def test_an_encoder_gives_the_means_of_the_guide_bit_for_bit(program):
    x, before = clusters().x, dict(copy.deepcopy(program.state_dict()))
    encoder = Encoder(program, x).eval()
    means = evaluation.posterior_means(program, x)
    found = encoder(x).detach()
    assert found.shape == (90, encoder.num_features)
    if len(means) == 1:
        assert torch.equal(found, means["z"])
    else:
        # The layer that is inferred first depends on no draw of another one.
        first = next(iter(means))
        width = means[first].shape[1]
        torch.testing.assert_close(found[:, :width], means[first], rtol=1e-5, atol=1e-5)
    encoder.train()(x).sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())
    assert same(dict(program.state_dict()), before)
    assert all(p.grad is None for p in program.parameters())


def test_a_posterior_that_is_one_module_is_the_encoder_alone():
    vae = assembled(VAE)
    names = {name for name, _ in Encoder(vae, clusters().x).named_parameters()}
    assert names == {f"means.posterior.{name}" for name, _ in vae.posterior.named_parameters()}


def test_a_frozen_encoder_keeps_its_bits_and_statistics_while_its_head_learns():
    data = clusters()
    vae = assembled(VAE, network=Normalized)
    fit(vae, data.x, **QUICK)
    moved = {}
    for frozen in (True, False):
        torch.manual_seed(0)
        classifier = Classifier(Encoder(vae, data.x, frozen=frozen), 3)
        before = copy.deepcopy(classifier.state_dict())
        classifier.fit(data.x, data.labels, epochs=2, batch_size=30, lr=0.01)
        after = classifier.state_dict()
        moved[frozen] = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved[True] == {"head.weight", "head.bias"}
    assert {name.rpartition(".")[2] for name in moved[False]} >= {"running_mean", "weight"}


# The classifier -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_logistic_regression_is_that_of_scikit_learn(num_classes):
    from sklearn.linear_model import LogisticRegression

    data = clusters()
    x, labels = data.x[data.labels < num_classes], data.labels[data.labels < num_classes]
    weight, bias = evaluation.logistic_regression(x, labels)
    found = (x.double() @ weight.double().T + bias).softmax(1)
    scaled = ((x - x.mean(0)) / x.var(0, correction=0).mean().sqrt()).numpy()
    theirs = LogisticRegression(max_iter=500).fit(scaled, labels.numpy()).predict_proba(scaled)
    torch.testing.assert_close(found, torch.from_numpy(theirs).double(), rtol=1e-3, atol=1e-4)


def test_a_classifier_starts_as_the_regression_on_the_means():
    data = clusters()
    vae = assembled(VAE)
    fit(vae, data.x, **QUICK)
    means = evaluation.posterior_means(vae, data.x)["z"]
    few, rest = slice(0, 30), slice(30, 90)
    classifier = Classifier(Encoder(vae, data.x), 3)
    classifier.probe(data.x[few], data.labels[few])
    weight, bias = evaluation.logistic_regression(means[few], data.labels[few])
    predicted = (means[rest].double() @ weight.double().T + bias).argmax(1)
    expected = (predicted == data.labels[rest]).double().mean().item()
    assert accuracy(classifier, data.x[rest], data.labels[rest]) == pytest.approx(expected)


def test_a_unit_that_is_not_used_does_not_drown_the_others():
    """Ten data of each class and a hundred units of small noise beside the three that tell."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    told = 2.0 * torch.eye(3)[labels] + 0.5 * torch.randn(60, 3)
    means = torch.cat([told, 0.01 * torch.randn(60, 100)], 1)
    weight, bias = evaluation.logistic_regression(means[:30], labels[:30])
    right = ((means[30:] @ weight.float().T + bias).argmax(1) == labels[30:]).float().mean()
    each_by_itself = evaluation.linear_probe(means[:30], labels[:30], means[30:], labels[30:])
    assert right > each_by_itself


def test_a_class_without_a_labelled_datum_is_never_predicted():
    data = clusters()
    classifier = Classifier(Encoder(assembled(VAE), data.x), 4)
    classifier.probe(data.x, data.labels)
    classifier.fit(data.x, data.labels, epochs=1, batch_size=30, lr=0.01)
    assert bool((classifier(data.x).argmax(1) < 3).all())
    assert all(p.isfinite().all() for n, p in classifier.named_parameters() if n != "head.bias")


def test_draws_of_the_labelled_data_are_repeated_by_their_seed():
    data, state = clusters(), torch.get_rng_state()
    vae = assembled(VAE)
    torch.set_rng_state(state)

    def fresh(seed):
        torch.manual_seed(seed)
        return assembled(VAE)

    options = {"labels_per_class": 2, "num_repeats": 2, "epochs": 2}
    found = [finetune(vae, data, data, fresh=fresh, **options, seed=seed) for seed in (0, 0, 7)]
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(found[0]) == repr(found[1]) != repr(found[2])
    assert found[0].num_test == 90


@pytest.mark.slow
def test_a_tuned_encoder_of_digits_beats_its_probe_and_the_same_network_from_scratch():
    digits = datasets.load("digits")
    parts = [Data(part.x.float(), labels=part.labels) for part in (digits.train, digits.test)]

    def fresh(seed=0):
        torch.manual_seed(seed)
        return VAE.assemble(
            (1, 8, 8), (20,), likelihood=partial(Binomial, total_count=16),
            network=partial(MLP, hidden=(200,)), data=parts[0].x,
        )  # fmt: skip

    vae = fresh()
    fit(vae, digits, epochs=60, device="cpu", progress=False)
    found = finetune(vae, *parts, fresh=fresh)
    assert found.finetuned > found.probe
    assert found.finetuned > found.scratch
    assert found.probe > 0.85


LABELS = torch.arange(90) % 3
REFUSED = {
    "labels beside x": (
        lambda: assembled(ConditionalVAE, num_classes=3), clusters(),
        "a ConditionalVAE takes labels beside x",
    ),
    "no mean": (
        lambda: assembled(VAE, posterior=NeuralSpline), clusters(),
        "the guide's site 'z' has a TransformedDistribution without a mean",
    ),
    "no labels": (lambda: assembled(VAE), Data(clusters().x), "data have no labels"),
    "one class": (
        lambda: assembled(VAE), Data(clusters().x, labels=0 * LABELS), "have one class alone",
    ),
    "no program": (lambda: nn.Linear(3, 3), clusters(), "is no program"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line(name):
    build, data, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as told:
        finetune(build(), data, data, fresh=lambda seed: build(), num_repeats=1, epochs=1)
    assert "\n" not in str(told.value)


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    data = clusters(150)
    np.savez(path / "clusters.npz", x=data.x.numpy(), y=data.labels.numpy())
    np.save(path / "bare.npy", data.x.numpy())
    assert train("--data", path / "clusters.npz", "--out", path / "run") == 0
    assert train("--data", path / "bare.npy", "--out", path / "bare") == 0
    return path


def test_the_command_prints_and_keeps_three_accuracies(folder, capsys):
    given = ["finetune", str(folder / "run"), "--labels", "2", "--repeats", "2", "--epochs", "3"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "with 2 labelled data of each class; means over 2 draws" in shown
    record = json.loads((folder / "run" / "finetune.json").read_text())
    for name, said in {
        "finetuned": "fine-tuned", "probe": "linear probe", "scratch": "from scratch",
    }.items():  # fmt: skip
        line = next(line for line in shown.splitlines() if line.strip().startswith(said))
        assert f"{100 * record[f'{name}_accuracy']:.1f} +- " in line
        assert 0 <= record[f"{name}_accuracy"] <= 1
    assert main(given) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("run", "arguments", "said"),
    [
        ("bare", [], "the training data have no labels"),
        ("run", ["--labels", "0"], "--labels 0: give 1 or more"),
        ("run", ["--repeats", "1"], "--repeats 1: give 2 or more"),
        ("nothing", [], "is no run folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, arguments, said, folder, capsys):
    before = tree(folder)
    assert main(["finetune", str(folder / run), *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert said in told[0]
    assert tree(folder) == before
