"""A few labels: how many are kept, and how many of them a batch has."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bits import same
from command import train
from runs import final
from test_engine_data import batches, collect, equal

from pyro_vae import fit
from pyro_vae.cli import main
from pyro_vae.components import MLP
from pyro_vae.datasets import Data
from pyro_vae.datasets.labels import few_labels
from pyro_vae.engine import data as engine_data
from pyro_vae.engine.callbacks import Callback
from pyro_vae.models import M2

LABELS = torch.where(torch.arange(23) % 4 == 0, torch.arange(23) % 2, -1)  # 6 of 23


def mixed(labels=LABELS, **options):
    x = torch.arange(len(labels), dtype=torch.float32).unsqueeze(1)
    options = {"labelled_share": 0.4, **options}
    return batches(data=Data(x, labels), **options)


def test_every_batch_has_the_share_of_labels():
    drawn = collect(mixed(), 1)
    assert len(drawn) == 6  # 17 rows without a label, three a batch
    for x, labels in drawn:
        assert len(x) == 5
        assert (labels >= 0).sum() == 2
        assert torch.equal(labels, LABELS[x.squeeze(1).long()])
    rows = torch.cat([x.squeeze(1).long() for x, _ in drawn])
    assert set(rows.tolist()) == set(range(23))
    counts = rows.bincount()
    assert counts[LABELS < 0].max() == 2  # the last batch is filled up
    assert set(counts[LABELS >= 0].tolist()) == {2}
    assert mixed().rows_before(6) == 30


def test_the_larger_part_is_gone_through_once_whichever_it_is():
    drawn = collect(mixed(labelled_share=0.2), 0)
    assert len(drawn) == 6  # six labels, one a batch
    assert sorted(torch.cat([x[y >= 0] for x, y in drawn]).flatten().tolist()) == [
        0.0, 4.0, 8.0, 12.0, 16.0, 20.0
    ]  # fmt: skip


def test_a_batch_depends_on_seed_and_epoch_alone():
    whole = collect(mixed(), 2)
    assert equal(whole, collect(mixed(), 2))
    assert equal(whole[3:], collect(mixed(), 2, start=3))
    assert not equal(whole, collect(mixed(), 3))
    assert not equal(whole, collect(mixed(seed=4), 2))


def test_streamed_batches_are_the_same(monkeypatch):
    whole = collect(mixed(), 2)
    streamed = mixed(memory_budget=0)
    assert not streamed.resident
    assert equal(whole, collect(streamed, 2))
    assert engine_data.LabelledShare is not None


WRONG = {
    "labelled_share=1.5: the labelled part of a batch lies between": partial(
        mixed, labelled_share=1.5
    ),
    "labelled_share=0.4: no training row has a label": partial(mixed, torch.full((23,), -1)),
    "labelled_share=0.4: no training row has no label": partial(mixed, LABELS.clamp(min=0)),
    "labelled_share=0.05 of a batch of 5 leaves no place": partial(mixed, labelled_share=0.05),
    "labelled_share=0.4: the data have no labels": lambda: batches(
        data=Data(torch.zeros(9, 2)), labelled_share=0.4, fields=("x",)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_share_that_cannot_be_is_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WRONG[message]()


def test_as_many_labels_of_each_class_are_kept():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 7)
    kept = few_labels(labels, 12, seed=0)
    assert kept[kept >= 0].bincount().tolist() == [5, 4, 3]  # of the third there are no more
    assert torch.equal(kept[kept >= 0], labels[kept >= 0])
    assert torch.equal(kept, few_labels(labels, 12, seed=0))
    assert not torch.equal(kept, few_labels(labels, 12, seed=1))
    for number in (2, 84):
        with pytest.raises(ValueError, match=f"num_labels={number}: 83 training rows have a label"):
            few_labels(labels, number, seed=0)


def two_kinds(labels):
    kind = torch.arange(len(labels)) % 2
    x = torch.where(kind == 1, 1.0, 0.0).unsqueeze(1).expand(-1, 6).contiguous()
    return x, labels


def semi_supervised():
    torch.manual_seed(0)
    return M2.assemble((6,), (2,), num_classes=2, network=partial(MLP, hidden=(4,)))


EAGER = {"device": "cpu", "progress": False, "engine": "eager"}


class Stop(Callback):
    """Stop a run after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, run, loss):
        if run.progress.step == self.after:
            raise KeyboardInterrupt


def test_a_run_takes_the_share_and_is_resumed_with_it_alone(tmp_path):
    """It goes on to the same bits, in the middle of an epoch."""
    data = two_kinds(torch.where(torch.arange(60) < 20, torch.arange(60) % 2, -1))
    options = {"batch_size": 8, "epochs": 2, "checkpoint_seconds": 0.0, **EAGER}
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    done = fit(semi_supervised(), data, labelled_share=0.5, out=whole, **options)
    assert done.steps == 16  # 32 rows without a label in training, four a batch
    with pytest.raises(KeyboardInterrupt):
        fit(semi_supervised(), data, labelled_share=0.5, out=out, callbacks=[Stop(11)], **options)
    with pytest.raises(ValueError, match=r"labelled_share: 0.5 then, 0.25 now"):
        fit(semi_supervised(), data, labelled_share=0.25, out=out, resume=True, **options)
    fit(semi_supervised(), data, labelled_share=0.5, out=out, resume=True, **options)
    assert same(final(out), final(whole))


def test_no_label_and_no_row_without_one_are_told():
    program, none = semi_supervised(), torch.full((60,), -1)
    some = none.clone()
    some[:6] = torch.arange(6) % 2
    options = {"epochs": 1, **EAGER}
    data = {"train": two_kinds(none), "validation": two_kinds(some), "test": two_kinds(some)}
    with pytest.raises(ValueError, match=r"^no training row has a label .* or take GMVAE"):
        fit(program, data, **options)
    with pytest.warns(UserWarning, match="every training row has a label.*ConditionalVAE"):
        fit(program, two_kinds(torch.arange(60) % 2), **options)


LONGER = ("--epochs", "8", "--engine", "eager")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of M2 on files of two kinds of rows, with four labels."""
    folder = tmp_path_factory.mktemp("m2")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (rng.random((120, 1, 4, 4)) < np.where(y == 1, 0.8, 0.2)[:, None, None, None]).astype("u1")
    np.savez(folder / "x.npz", x=x, y=y)
    words = ["--data", folder / "x.npz", "--num-labels", "20", "--labelled-share", "0.5"]
    assert train("--model", "M2", *words, *LONGER, "--out", folder / "run") == 0
    return folder


def test_a_run_reports_how_many_classes_it_guesses(run, capsys):
    results = json.loads((run / "run/results.json").read_text())
    assert results["test_accuracy"] > 0.8
    assert results["probe_accuracy"] is None
    assert "test accuracy" in (run / "run/report.html").read_text()
    assert main(["evaluate", str(run / "run"), "--num-samples", "2"]) == 0
    again = json.loads((run / "run/results.json").read_text())
    assert again["test_elbo_nats"] == results["test_elbo_nats"]
    assert again["test_accuracy"] == results["test_accuracy"]


@pytest.mark.pictures
def test_a_run_draws_classes_confusion_and_analogies(run):
    assert main(["plot", str(run / "run")]) == 0
    drawn = {path.stem for path in (run / "run/pictures").iterdir()}
    assert {"confusion", "classes", "analogies", "samples", "reconstructions"} <= drawn


def test_a_class_is_sampled_by_name(run, tmp_path):
    out = tmp_path / "samples.npy"
    words = ["--label", "1", "--num", "40", "--mean", "--out", str(out)]
    assert main(["sample", str(run / "run"), *words]) == 0
    ones = np.load(out)
    assert main(["sample", str(run / "run"), *words, "--label", "0"]) == 0
    assert ones.mean() > np.load(out).mean()


MISTAKES = {
    "--num-labels 1": "--num-labels 1: .* of 2 classes; keep 2 or more",
    "--num-labels 0": "--num-labels 0: give 1 or more",
    "--labelled-share 2": "--labelled-share 2.0: the labelled part of a batch lies between",
    "--labelled-share 0.01": "--labelled-share 0.01 of a batch of 8 leaves no place",
    "--model.alpha -1": "alpha.*-1",
    "--objective RLOO": "RLOO .*'y_unobserved' is marked to be enumerated.*: use ELBO",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words, run, capsys):
    data = ["--data", run / "x.npz", "--num-labels", "20", "--model", "M2"]
    assert train(*data, *words.split(), "--out", run / "wrong") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(MISTAKES[words], said), said
    assert not Path(run / "wrong").exists()


def test_labels_are_not_kept_of_data_without_any(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (40, 3)))
    words = ["--data", tmp_path / "x.npy", "--num-labels", "4", "--out", tmp_path / "run"]
    assert train(*words) == 2
    assert "--num-labels 4: " in capsys.readouterr().err
