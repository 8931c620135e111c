"""The fields of the data: laws that hold for each, whatever its name, from a file to a program."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from command import TINY
from mapping import is_mapped

from pyro_vae import evaluation, fit, memory
from pyro_vae.cli import data_record, main
from pyro_vae.datasets import Data, Dataset, as_dataset, from_arrays, load
from pyro_vae.datasets.data import joined
from pyro_vae.engine.data import Batches, observe_once
from pyro_vae.engine.observations import AsFloat, Binarize
from pyro_vae.inference import ELBO

ROWS = np.arange(30)
X = np.stack([ROWS + 0.5, -ROWS], 1).astype("f4")
# What a user gives, and what programs get; a new field is one line.
FIELDS = {
    "labels": ((ROWS % 3 * 5).tolist(), ROWS % 3),
    "labels of some": (np.where(ROWS % 4, ROWS % 3, -1), np.where(ROWS % 4, ROWS % 3, -1)),
    "weights": (ROWS.astype("f8"), ROWS.astype("f4")),
    "mask": (ROWS % 2, ROWS % 2 == 1),
    "mask of values": (X > 3, X > 3),
    "covariates": (X[:, ::-1] / 7.0, X[:, ::-1] / 7),
    "covariates of whole numbers": (ROWS, ROWS.astype("f4")),
    "dose": (ROWS.astype("u1"), ROWS),
    "pictures": (np.arange(120).reshape(30, 1, 2, 2) / 8, np.arange(120).reshape(30, 1, 2, 2) / 8),
}
ALL = pytest.mark.parametrize("kind", FIELDS)


def field_of(kind: str) -> tuple[str, object, torch.Tensor]:
    given, expected = FIELDS[kind]
    found = torch.from_numpy(np.ascontiguousarray(expected))
    return kind.split()[0], given, found.float() if found.is_floating_point() else found


def data_of(kind: str) -> Dataset:
    name, given, _ = field_of(kind)
    return from_arrays({"x": X, name: given})


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def row_of(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0] - 0.5).long()


# ----------------------------------------------------------------------------------------- reading


@ALL
def test_a_field_follows_its_rows(kind):
    name, _, expected = field_of(kind)
    for part in data_of(kind).parts.values():
        assert same(part.fields[name], expected[row_of(part.x)])
        for index in (slice(1, 3), torch.tensor([2, 0])):
            few = part[index]
            assert same(getattr(few, name), expected[row_of(few.x)])
            assert same(few.row, row_of(few.x))


def archived(folder, arrays) -> Dataset:
    np.savez(folder / "a.npz", **arrays)
    return load(folder / "a.npz")


@ALL
def test_every_way_to_give_a_field_is_one(kind, tmp_path):
    name, given, _ = field_of(kind)
    known = name in ("labels", "weights", "mask", "covariates")
    want = data_of(kind).fingerprint()
    ways = [
        as_dataset({"x": X, name: given}),
        from_arrays([{"image": x, name: value} for x, value in zip(X, given, strict=True)]),
        *([archived(tmp_path, {"images": X, name: given})] if known else []),
        *([from_arrays(X, **{name: given})] if name in ("labels", "weights") else []),
    ]
    assert {way.fingerprint() for way in ways} == {want}


@pytest.mark.filterwarnings("ignore:.*stand in the training data, too")
@ALL
def test_splits_have_the_field(kind, tmp_path):
    name, given, expected = field_of(kind)
    spans = {"train": slice(16), "valid": slice(16, 24), "test": slice(24, 30)}
    nested = from_arrays({part: {"x": X[s], name: given[s]} for part, s in spans.items()})
    found = {name: nested}
    if name in ("labels", "weights", "mask", "covariates"):
        rows = {part: X[s] for part, s in spans.items()}
        found["before"] = archived(
            tmp_path, rows | {f"{part}_{name}": given[s] for part, s in spans.items()}
        )
        found["after"] = archived(
            tmp_path, rows | {f"{name}_{part}": given[s] for part, s in spans.items()}
        )
    for data in found.values():
        for part in data.parts.values():
            assert same(part.fields[name], expected[row_of(part.x)])
    if name == "weights":  # of use in training alone
        return
    with pytest.raises(ValueError, match=f"{name} for some splits only"):
        from_arrays({part: {"x": X[s], **({name: given[s]} if part == "train" else {})}
                     for part, s in spans.items()})  # fmt: skip


@ALL
def test_the_fingerprint_sees_the_field(kind):
    name, given, _ = field_of(kind)
    prints = [
        from_arrays(X).fingerprint(),
        data_of(kind).fingerprint(),
        from_arrays({"x": X, name: np.roll(given, 1, axis=0)}).fingerprint(),
    ]
    assert len(set(prints)) == 3
    without = data_of(kind).map(lambda part: part.replace(**{name: None}))
    assert Dataset("a", *without.parts.values(), None).fingerprint() == prints[0]


def test_the_names_of_fields_are_seen():
    named = [from_arrays({"x": X, name: ROWS}).fingerprint() for name in ("dose", "age")]
    assert len(set(named)) == 2


@ALL
def test_another_number_of_rows_is_refused_by_name(kind):
    name, given, expected = field_of(kind)
    with pytest.raises(ValueError, match=name):
        from_arrays({"x": X, name: given[:29]})
    with pytest.raises(ValueError, match=f"29 {name} for 30 rows"):
        Data(torch.from_numpy(X), **{name: expected[:29]})


REFUSED = {
    "a mask of numbers": ("mask", ROWS, "mask of array: 2 at row 2, expected True or"),
    "a missing covariate": (
        "covariates",
        np.where(X == 3.5, np.nan, X),
        "nan at row 3, expected finite numbers: fill",
    ),
    "an infinite one": ("covariates", np.where(X == -4, np.inf, X), "inf at row 4"),
    "text": ("note", ["a"] * 30, "integers or floats; or leave note out"),
    "a name that is taken": ("rows", ROWS, "no field can be called 'rows'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_a_field_does_not_have_are_refused(case):
    name, values, words = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        from_arrays({"x": X, name: values})


def test_a_mask_of_pictures_has_their_channel():
    x = np.arange(480).reshape(30, 4, 4)
    found = from_arrays({"x": x, "mask": x % 3 == 0})
    assert torch.equal(found.train.mask, found.train.x % 3 == 0)


def test_digits_of_covariates_that_are_lost_are_told():
    with pytest.warns(UserWarning, match="covariates of array: 32-bit floats cannot tell apart"):
        from_arrays({"x": X, "covariates": 1e9 + ROWS / 10})


# ------------------------------------------------------------------------------------- of a run


@pytest.mark.parametrize("memory_budget", [10**9, 0])
@pytest.mark.parametrize("observation", [AsFloat(), Binarize(60), Binarize(60, resample=False)])
@ALL
def test_a_batch_has_the_field_of_its_rows(kind, observation, memory_budget):
    name, _, expected = field_of(kind)
    data = Data(torch.from_numpy(X[:, :1] + 0.5).round(), row=None, **{name: expected})
    batches = Batches(data, observation, batch_size=7, seed=0, device="cpu",
                      fields=("x", name, "row"), memory_budget=memory_budget)  # fmt: skip
    found = [torch.cat(parts) for parts in zip(*batches.epoch(0), strict=True)]
    assert found[2].sort().values.tolist() == ROWS.tolist()
    assert same(found[1], expected[found[2]])


@ALL
def test_rows_observed_once_keep_the_field(kind):
    name, _, expected = field_of(kind)
    found = observe_once(data_of(kind).train, AsFloat(), seed=0, device="cpu")
    assert same(found.fields[name], expected[row_of(found.x)])


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_a_mapped_field_stays_in_its_file_and_comes_as_programs_take_it(
    dtype, tmp_path, monkeypatch
):
    covariates = np.arange(120).reshape(30, 4).astype(dtype)
    np.savez(tmp_path / "a.npz", x=X, covariates=covariates)
    monkeypatch.setattr(memory, "MAPPED_BYTES", 400)
    np.savez(tmp_path / "b.npz", **{"x": X.astype("f8"), "covariates": covariates})
    with pytest.warns(UserWarning, match="split in file order"):
        part = load(tmp_path / "b.npz").train
    stored = torch.float32 if dtype == "i4" else torch.from_numpy(covariates).dtype
    assert part.covariates.dtype == stored
    assert is_mapped(part.covariates, "b.npz" if dtype != "i4" else "(deleted)")
    (batch,) = Batches(part, AsFloat(), batch_size=24, seed=0, device="cpu",
                       fields=("x", "covariates")).epoch(0)  # fmt: skip
    assert batch[1].dtype == torch.float32
    assert torch.equal(batch[1], torch.from_numpy(covariates)[row_of(batch[0])].to(batch[1].dtype))


@ALL
def test_a_run_keeps_the_field_of_its_few_rows(kind, tmp_path):
    name, _, expected = field_of(kind)
    known = data_record.record_of(data_of(kind), "x.npz", tmp_path, "")
    data_record.write(known, tmp_path)
    few = data_record.read(tmp_path).few
    assert same(few.fields[name], expected[row_of(few.x)])


def test_data_are_joined_with_what_all_of_them_have():
    one, other = Data(torch.ones(2, 1), torch.ones(2)), Data(torch.zeros(3, 1))
    assert [*joined([one, other]).fields] == ["x"]
    assert joined([one, one]).labels.tolist() == [1] * 4


# --------------------------------------------------------------------------------- by programs


class Program(torch.nn.Module):
    """x ~ N(d z + m, 1), q = N(e x + m, 1), m the means of all other fields; may note them all."""

    def __init__(self, model: str, guide: str, *, notes: bool):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = torch.nn.Linear(2, 1), torch.nn.Linear(1, 2)
        self.notes, self.seen = notes, {"model": [], "guide": []}
        for role, arguments in (("model", model), ("guide", guide)):
            names = [word.partition("=")[0] for word in arguments.split(", ")]
            given = ", ".join(f"{name!r}: {name}" for name in names if name != "*")
            made = {}
            exec(f"def {role}(self, {arguments}): self._{role}({{{given}}})", made)
            setattr(type(self), role, made[role])

    def _taken(self, role, given):
        if self.notes:
            self.seen[role].append(given)
        x, *others = (value for value in given.values() if isinstance(value, torch.Tensor))
        means = [value.float().reshape(len(x), -1).mean(1, keepdim=True) for value in others]
        return x, sum(means, start=torch.zeros(len(x), 1))

    def _model(self, given):
        x, mean = self._taken("model", given)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z) + mean, 1.0).to_event(1), obs=x)

    def _guide(self, given):
        x, mean = self._taken("guide", given)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x) + mean, 1.0).to_event(1))


def program(model: str, guide: str, *, notes: bool = True) -> Program:
    """Return a program whose functions have these arguments, of a class of its own."""
    return type("Program", (Program,), {})(model, guide, notes=notes)


TAKEN = {
    "both": ("x, {f}", "x, {f}"),
    "the model": ("x, {f}", "x"),
    "the guide, with a default": ("x", "x, {f}=None"),
    "behind what is not there": ("images, {f}", "x, absent=None, {f}=None"),
    "by keyword alone": ("data, *, {f}", "x, *, absent=3, {f}"),
}


def fitted(made: Program, data, **options) -> list:
    return fit(made, data, epochs=1, batch_size=8, device="cpu", progress=False, **options).history


KINDS = ["labels", "mask of values", "dose", "weights", "row"]


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *zip(KINDS, TAKEN, strict=True),
        *(
            pytest.param("covariates", case, marks=() if "behind" in case else pytest.mark.slow)
            for case in TAKEN
        ),
    ],
)
def test_a_program_is_given_the_fields_that_its_arguments_name(kind, case):
    arguments = [words.format(f=kind.split()[0]) for words in TAKEN[case]]
    name, _, expected = ("row", None, torch.arange(30)) if kind == "row" else field_of(kind)
    data = from_arrays(X) if kind == "row" else data_of(kind)
    made = program(*arguments)
    eager = fitted(made, data, engine="eager")
    for role, words in zip(("model", "guide"), arguments, strict=True):
        assert made.seen[role]
        for given in made.seen[role]:
            x = next(iter(given.values()))
            assert given.get("absent") in (None, 3)
            if name in words:
                assert same(given[name], expected[row_of(x)])
    if kind == "covariates":
        assert fitted(program(*arguments, notes=False), data, engine="recorded") == eager
    rows = data.test
    by_name = evaluation.elbo(made, rows).elbo_nats
    assert by_name == evaluation.elbo(made, {"x": rows.x, name: getattr(rows, name)}).elbo_nats
    assert by_name == evaluation.elbo(made.model, made.guide, rows).elbo_nats
    if "absent" not in arguments[1]:
        assert by_name == evaluation.elbo(made, rows.x, getattr(rows, name)).elbo_nats


SYNONYMS = {"y": "labels", "target": "labels", "weight": "weights"}


@pytest.mark.parametrize("word", SYNONYMS)
def test_an_argument_may_have_another_name_of_the_field(word):
    made = program(f"images, {word}", "images")
    fitted(made, data_of(SYNONYMS[word]))
    for given in made.seen["model"]:
        assert same(given[word], field_of(SYNONYMS[word])[2][row_of(given["images"])])


def test_a_field_that_is_not_there_is_named_with_those_that_are():
    said = "the guide takes 'dose', but the data have no such field: they have x, covariates; give"
    with pytest.raises(ValueError, match=said):
        fitted(program("x", "x, dose"), data_of("covariates"))
    with pytest.raises(ValueError, match="the model takes 'features', but the data have no such"):
        fitted(program("x, features", "x"), data_of("dose"))
    fitted(program("x, features", "x"), {"x": X, "features": X})
    part = data_of("covariates")
    lacking = Dataset("a", part.train, part.validation.replace(covariates=None), part.test, None)
    with pytest.raises(ValueError, match="takes covariates, which the validation data do not have"):
        fitted(program("x, covariates", "x"), lacking)


def test_a_field_that_nothing_takes_is_told_once():
    with pytest.warns(UserWarning, match=r"is called dose: .* for nothing$") as caught:
        fit([program("x", "x"), program("x", "x")], data_of("dose"), epochs=1, progress=False)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"is called lables: .*\(is labels meant\?\)"):
        fitted(program("x", "x"), {"x": X, "lables": ROWS})


def test_weights_that_a_program_takes_are_its_own_to_use(monkeypatch):
    monkeypatch.setattr(Program, "_taken", lambda self, role, given: (given["x"], 0.0))
    weighed, own, without = (
        fitted(program(f"x{taken}", "x"), data, objective=ELBO())
        for taken, data in (("", data_of("weights")), (", weights", data_of("weights")), ("", X))
    )
    assert own == without != weighed


# ----------------------------------------------------------------------------- missing labels

SOME = ROWS % 4 > 0
NAMES = np.array(["cat", "dog", "emu"])
UNLABELLED = {
    # labels of which those not in SOME are missing
    "-1": np.where(SOME, ROWS % 3, -1),
    "NaN": np.where(SOME, ROWS % 3, np.nan),
    "None": [int(row % 3) if known else None for row, known in zip(ROWS, SOME, strict=True)],
    "None among names": [NAMES[row % 3] if k else None for row, k in zip(ROWS, SOME, strict=True)],
    "masked": np.ma.array(ROWS % 3, mask=~SOME),
    "masked names": np.ma.array(NAMES[ROWS % 3], mask=~SOME),
    "a tensor": torch.where(torch.from_numpy(SOME), torch.from_numpy(ROWS) % 3, -1),
}


@pytest.mark.parametrize("kind", UNLABELLED)
def test_labels_that_are_missing_are_kept_as_such(kind):
    found = from_arrays(X, UNLABELLED[kind])
    assert len(found.classes) == 3
    for part in found.parts.values():
        row = row_of(part.x)
        assert part.labels.tolist() == np.where(SOME, ROWS % 3, -1)[row].tolist()
        assert part.labelled.tolist() == SOME[row].tolist()


def test_two_sources_are_one_data_set():
    labels = np.concatenate([ROWS[:20] % 3, np.full(10, -1)])
    made = program("x, labels, labelled", "x")
    fitted(made, (X, labels))
    for given in made.seen["model"]:
        assert torch.equal(given["labelled"], row_of(given["x"]) < 20)
        assert torch.equal(given["labels"] >= 0, given["labelled"])


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_program_that_does_not_know_of_missing_labels_is_refused(part):
    parts = from_arrays(X, ROWS % 3).parts
    parts[part] = parts[part].replace(labels=parts[part].labels.clone())
    parts[part].labels[0] = -1
    data = Dataset("a", *parts.values(), None)
    with pytest.raises(ValueError, match=rf"1 of \d+ {part} rows have no label .* labelled, True"):
        fitted(program("x, y", "x"), data)
    fitted(program("x, y", "x, labelled=None"), data)
    with pytest.raises(ValueError, match="1 of 3 rows have no label"):
        evaluation.elbo(program("x, y", "x"), data.parts[part][:3])


# ------------------------------------------------------------------------- the command line

CONDITIONAL = """
import torch, pyro, pyro.distributions as dist
from torch import nn

class Adjusted(nn.Module):
    def __init__(self, event_shape, latent_shape, covariates_shape):
        super().__init__()
        (d,), (self.k,), (c,) = event_shape, latent_shape, covariates_shape
        self.encoder, self.decoder = nn.Linear(d, self.k), nn.Linear(self.k + c, d)

    def model(self, x, covariates):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.k), 1.0).to_event(1))
            given = torch.cat([z, covariates.expand(*z.shape[:-1], -1)], -1)
            pyro.sample("x", dist.Normal(self.decoder(given), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))
"""


def test_the_command_line_hands_fields_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(CONDITIONAL)
    covariates = 5 * np.random.default_rng(0).normal(size=(60, 1))
    np.savez("d.npz", x=np.repeat(covariates, 2, 1) + 0.1, covariates=covariates)
    np.savez("alone.npz", x=covariates)
    named = ["--model", "my.py:Adjusted"]
    options = ["--epochs", "40", "--lr", "0.05", "--weights", "last", "--engine", "eager"]
    assert main(["train", *TINY, *named, *options, "--data", "d.npz", "--out", "run"]) == 0
    assert main(["evaluate", "run", *named]) == 0
    Path("d.npz").unlink()
    assert main(["sample", "run", *named, "--num", "4", "--mean"]) == 0
    # In turn those of the few rows that the run keeps, which are its first training rows.
    drawn, rows = np.load("run/samples.npy"), data_record.read(Path("run")).few.covariates[:4]
    assert np.abs(drawn - rows.numpy()).max() < 2
    capsys.readouterr()
    assert main(["train", *TINY, *named, "--data", "alone.npz", "--out", "other"]) == 2
    assert "it takes covariates, which alone.npz has not; name a .npz" in capsys.readouterr().err
