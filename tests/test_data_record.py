"""A run stands on its own: it finds its data, knows them again, and samples without them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from command import TINY

from pyro_vae.cli import config_files, data_record, main
from pyro_vae.datasets import from_arrays

X = np.random.default_rng(0).normal(size=(60, 3)).astype("f4")
LABELS = np.arange(60) % 3

OF_THE_DATA = """
import torch, pyro, pyro.distributions as dist
from torch import nn

class MyVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    @classmethod
    def assemble(cls, event_shape, latent_shape, data):
        made = cls()
        made.scale = float(data.std())
        return made

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))
"""


# Rows ---------------------------------------------------------------------------------------------


def test_rows_have_one_hash_whatever_their_type_and_order():
    rows = torch.randint(0, 200, (500, 7), generator=torch.Generator().manual_seed(0))
    found = data_record.row_hashes(rows)
    assert len(set(found.tolist())) == len({tuple(row) for row in rows.tolist()}) == 500
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.float64):
        assert (data_record.row_hashes(rows.to(dtype)) == found).all()
    assert (data_record.row_hashes(rows.flip(0)) == found[::-1]).all()
    assert (data_record.row_hashes(rows[:, [1, 0, *range(2, 7)]]) != found).any()
    signed = torch.tensor([[0.0, torch.nan], [-0.0, -torch.nan]])
    assert len(set(data_record.row_hashes(signed).tolist())) == 1


def test_rows_that_were_trained_on_are_counted(monkeypatch):
    data = from_arrays(X)
    known = data_record.record_of(data, "x.npy", Path(), "")
    assert known.num_trained_on(data.train.x) == 48
    assert known.num_trained_on(data.test.x) == 0
    assert known.num_trained_on(torch.cat([data.train.x[:7], data.test.x]).flip(0)) == 7
    monkeypatch.setattr(data_record, "_MOST_HASHES", 24)  # the smaller half of them
    half = data_record.record_of(data, "x.npy", Path(), "")
    assert half.num_trained_on(data.train.x) == 48
    assert half.num_trained_on(data.test.x) == 0


@pytest.mark.parametrize("labels", [None, LABELS, np.array(["a", "b", "c"])[LABELS]])
def test_what_is_known_of_data_is_read_as_it_was_written(tmp_path, labels):
    x = np.where(np.arange(180).reshape(60, 3) == 7 * 3, np.nan, X)
    known = data_record.record_of(from_arrays(x, labels), str(tmp_path / "x.npy"), tmp_path, "")
    data_record.write(known, tmp_path)
    found = data_record.read(tmp_path)
    for name, value in vars(known).items():
        if name == "few":
            assert torch.equal(found.few.x.nan_to_num(), known.few.x.nan_to_num())
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            assert (getattr(found, name) == value).all()
        else:
            assert getattr(found, name) == value
    stand_in = found.stand_in()
    assert stand_in.event_shape == (3,)
    assert len(stand_in.train) == 48
    assert data_record.read(tmp_path / "nothing") is None


LABELLED = data_record.record_of(
    from_arrays(X, np.array(["cat", "dog", "emu"])[LABELS], name="pets"),
    "x",
    Path(),
    "",
)


def test_classes_are_sampled_in_turn_or_as_they_are_named():
    assert LABELLED.labels_to_sample(None).tolist() == [0, 1, 2]
    assert LABELLED.labels_to_sample("dog").tolist() == [1]
    assert LABELLED.labels_to_sample("emu,cat").tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"--label 7: the run's classes are cat, dog, emu"):
        LABELLED.labels_to_sample("7")
    with pytest.raises(ValueError, match="without labels"):
        replace(LABELLED, labels=None).labels_to_sample("cat")


def test_other_data_have_the_runs_levels_and_class_numbers():
    few = from_arrays(X[:30], np.array(["dog", "emu"])[LABELS[:30] % 2])
    found = LABELLED.converted(few)
    assert found.classes == ("cat", "dog", "emu")
    assert set(found.train.labels.tolist()) == {1, 2}
    counts = data_record.record_of(from_arrays(np.arange(60).reshape(20, 3)), "x", Path(), "")
    assert counts.converted(from_arrays(np.arange(30).reshape(10, 3))).levels == 59


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (from_arrays(X[:, :2]), r"of the shape \(2,\), and the run was trained on .* \(3,\)"),
        (from_arrays(X, ["yak"] * 60), "the class 'yak', and the run was trained on .* cat, dog"),
    ],
)
def test_data_that_do_not_fit_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        LABELLED.converted(other)


def test_values_beyond_the_levels_are_refused():
    counts = data_record.record_of(from_arrays(np.arange(60).reshape(20, 3)), "x", Path(), "")
    for other, found in ((X, "real numbers"), (np.arange(90).reshape(30, 3), "values up to 89")):
        with pytest.raises(ValueError, match=f"holds {found}.*whole numbers from 0 to 59"):
            counts.converted(from_arrays(other))


# The commands -------------------------------------------------------------------------------------


def trained(folder, x, *options, labels=None):
    """Train from within ``folder/a``, whose data have a relative path."""
    (folder / "a").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "a")
        np.savez("d.npz", x=x) if labels is None else np.savez("d.npz", x=x, y=labels)
        assert main(["train", *TINY, "--data", "d.npz", "--out", "run", *options]) == 0
    return folder / "a" / "run"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder):
    return json.loads((folder / "results.json").read_text())


def said(capsys):
    return capsys.readouterr().err


@pytest.mark.filterwarnings("default:.*holds other data")
def test_a_run_is_judged_from_anywhere_on_its_own_data_alone(place, capsys):
    run = trained(place, X)
    first = results(run)
    assert main(["evaluate", "a/run"]) == 0
    assert results(run) == first
    # Moved together, a run finds its data beside it; moved alone, where it is told.
    shutil.copytree("a", "b")
    shutil.move("a/d.npz", "moved.npz")
    assert main(["evaluate", "b/run"]) == 0
    assert main(["evaluate", "a/run", "--data", "moved.npz"]) == 0
    assert results(run) == results(place / "b" / "run") == first
    capsys.readouterr()
    assert main(["evaluate", "a/run"]) == 2
    assert "d.npz', which is not there any more: say with --data" in said(capsys)
    # Sampling needs no data.
    assert main(["sample", "a/run", "--num", "3"]) == 0
    assert np.load(run / "samples.npy").shape == (3, 3)
    # The same rows in another order have other test rows, which were trained on.
    again = X[np.random.default_rng(1).permutation(60)]
    np.savez("a/d.npz", x=again)
    mine = {tuple(row) for row in from_arrays(X).train.x.tolist()}
    seen = sum(tuple(row) in mine for row in from_arrays(again).test.x.tolist())
    assert seen > 0
    capsys.readouterr()
    for command in (["evaluate", "a/run"], ["plot", "a/run"], ["train", "--resume", "a/run"]):
        assert main(command) == 2
        assert f"of its 6 test rows, {seen} were trained on" in said(capsys)
    assert main(["evaluate", "a/run", "--data", "a/d.npz"]) == 0
    assert f"of its 6 test rows, {seen} were trained on" in said(capsys)
    assert results(run) == first
    assert results(run / "on-d.npz")["num_trained_on"] == seen
    assert main(["evaluate", "a/run", "--data", "a/d.npz", "--all"]) == 0
    assert "of all 60 rows, 48" in said(capsys)
    assert results(run / "on-d.npz")["num_test"] == 60


CONDITIONAL = ("--model", "ConditionalVAE", "--epochs", "25", "--lr", "0.06", "--engine", "eager")


# What a file of options holds after an edit, and what is said of it; None: that may be changed.
EDITED = {
    "seed: 0": ("seed: 3", "--seed 3 where the run was trained with --seed 0"),
    "data: ": ("data: /nowhere/else.npz #", "--data /nowhere/else.npz where the run was trained"),
    "latent: 2": ("latent: 3", "--latent 3 where the run was trained with --latent 2"),
    "    - 8": ("    - 9", "--network.hidden [9] where the run was trained with"),
    "batch_size: 8": ("batch_size: 4", "--batch-size 4 where"),
    "    min_scale: 0.001": ("    min_scale: 0.1", "--likelihood.min-scale 0.1 where"),
    "num_samples: 2": ("num_samples: 3", None),
    "epochs: 2": ("epochs: 3", None),
    "device: cpu": ("device: auto", None),
    "seed:": ("# a remark of the user's\nseed:", None),
}


@pytest.mark.filterwarnings("default:resuming, but not to the same bits")
def test_options_that_are_edited_after_training_are_named(place, capsys):
    run = trained(place, X)
    path = run / "config.yaml"
    written = path.read_text()
    kept = data_record.read(run).options
    commands = cycle((["evaluate"], ["sample"], ["plot"], ["train", "--resume"]))
    for before, (after, what) in EDITED.items():
        assert before in written
        path.write_text(written.replace(before, after, 1))
        if what is None:
            config_files.refuse_edited(path, kept)
            continue
        assert main([*next(commands), "a/run"]) == 2
        assert what in said(capsys)
    # A run that goes on with its data elsewhere, and for longer, has not been edited.
    path.write_text(written)
    shutil.move("a/d.npz", "moved.npz")
    again = ["train", "--resume", "a/run", "--data", "moved.npz", "--epochs", "3"]
    assert main(again) == 0
    assert main(["evaluate", "a/run", "--data", "moved.npz"]) == 0


@pytest.mark.filterwarnings("default:.*holds other data")
def test_a_labelled_run_is_sampled_without_its_data(place, capsys):
    run = trained(place, X + 9 * LABELS[:, None], *CONDITIONAL, labels=LABELS)
    (place / "a" / "d.npz").unlink()
    for options, classes in (([], [0, 1, 2, 0, 1]), (["--label", "2"], [2] * 5)):
        assert main(["sample", "a/run", "--num", "5", "--mean", *options]) == 0
        drawn = np.load(run / "samples.npy")
        assert (drawn.mean(1) / 9).round().clip(0, 2).tolist() == classes
    capsys.readouterr()
    assert main(["sample", "a/run", "--label", "9"]) == 2
    assert "--label 9: the run's classes are 0, 1, 2" in said(capsys)
    np.save("bare.npy", X)
    assert main(["evaluate", "a/run", "--data", "bare.npy"]) == 2
    assert "takes 'y', which stands for labels, but the data have no such" in said(capsys)


def test_a_program_that_keeps_facts_of_the_data_elsewhere_is_opened_with_them_alone(place, capsys):
    (place / "facts.py").write_text(OF_THE_DATA)
    run = trained(place, X, "--model", f"{place / 'facts.py'}:MyVAE", "--prior", "StandardNormal")
    assert data_record.read(run).opens_alone is False
    (place / "a" / "d.npz").rename("moved.npz")
    capsys.readouterr()
    assert main(["sample", "a/run", "--model", "facts.py:MyVAE"]) == 2
    assert "say with --data where the data are now" in said(capsys)
    assert main(["sample", "a/run", "--model", "facts.py:MyVAE", "--data", "moved.npz"]) == 0


@pytest.mark.filterwarnings("default:the numbers above are not stored")
def test_a_run_that_cannot_be_written_to_is_judged_and_one_that_is_gone_is_said(
    place, capsys, monkeypatch
):
    """A folder's permissions do not hold for root, who may run the tests."""
    run = trained(place, X)
    first = (run / "results.json").read_bytes()

    def read_only(path, data):
        raise OSError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr("pyro_vae.cli.results.replace_file", read_only)
    capsys.readouterr()
    assert main(["evaluate", "a/run"]) == 0
    printed = capsys.readouterr()
    assert "test ELBO" in printed.out
    assert "the numbers above are not stored: cannot write" in printed.err
    assert (run / "results.json").read_bytes() == first

    def removed(path, data):
        shutil.rmtree(run)
        raise FileNotFoundError(2, f"cannot write {path}")

    monkeypatch.setattr("pyro_vae.cli.results.replace_file", removed)
    assert main(["evaluate", "a/run"]) == 2
    assert "was removed during the evaluation: the numbers above are not stored" in said(capsys)
    assert not run.exists()


def test_a_finished_run_whose_results_are_missing_is_judged_when_it_is_resumed(place):
    run = trained(place, X)
    first = results(run)
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    assert main(["train", "--resume", "a/run"]) == 0
    assert results(run) | {"seconds": 0} == first | {"seconds": 0}
    assert (run / "report.html").exists()


def test_a_run_started_from_another_says_so(place):
    trained(place, X)
    begun = ["--init-from", "a/run", "--data", "a/d.npz", "--epochs", "0", "--out", "b"]
    assert main(["train", *TINY, *begun]) == 0
    found, first = results(place / "b"), results(place / "a" / "run")
    assert found["test_elbo_nats"] == first["test_elbo_nats"]
    assert found["init_from"].startswith(f"the best weights of {place / 'a' / 'run'}, of epoch")
