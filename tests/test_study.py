"""What an experiment measures is kept, told and drawn, whatever becomes of the rest."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import record
from study import Study, chosen, judge, spread

from pyro_vae import VAE

DOC = """Is one row better than another?

    python experiments/one.py --scale smoke|cpu|paper

Held against nothing,
as published.

Two paragraphs.
"""


class Scale(NamedTuple):
    epochs: int
    num_test: int


SCALES = {"smoke": Scale(1, 10), "cpu": Scale(20, 1000), "paper": Scale(2000, 1000)}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(record, "_FOLDER", tmp_path)
    return tmp_path


def study(**options: Any) -> Study[Scale]:
    return Study("experiments/one.py", DOC, SCALES, **options)


def rows(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["rows"]


def broken() -> dict[str, float]:
    raise ArithmeticError("no number")


def stopped() -> dict[str, float]:
    raise KeyboardInterrupt


def measure_three(second: Callable[[], dict[str, float]]) -> None:
    with study() as run:
        run.measure("a", lambda: {"nll_nats": 1.0})
        run.measure("b", second)
        run.measure("c", lambda: {"nll_nats": 2.0})
        run.show({"nll_nats": "nats"})


def test_a_complete_run_leaves_one_record_of_what_it_was(results):
    with study(seed=3) as run:
        run.measure("a", lambda: {"nll_nats": 1.5}, published={"nll_nats": 1.25})
        run.note(distances=[1, 2])
    assert [path.name for path in results.iterdir()] == ["one.json"]
    found = json.loads((results / "one.json").read_text())
    assert found["question"] == "Is one row better than another?"
    assert found["protocol"] == "Held against nothing, as published. Two paragraphs."
    assert found["scale"] == {"name": "cpu", "epochs": 20, "num_test": 1000}
    assert found["shortened"] == {"epochs": [20, 2000]}
    assert found["seed"] == 3
    assert found["distances"] == [1, 2]
    assert 0 <= found["rows"]["a"].pop("seconds") <= found["seconds"]
    assert found["rows"] == {"a": {"nll_nats": 1.5, "published": {"nll_nats": 1.25}}}


def test_a_row_that_fails_is_told_and_the_others_are_kept(results, capsys):
    before = results / "one.json"
    before.write_text("the last complete run")
    with pytest.raises(RuntimeError, match=r"not measured: b \(ArithmeticError: no number\)"):
        measure_three(broken)
    assert before.read_text() == "the last complete run"
    kept = results / "one.partial.json"
    assert list(rows(kept)) == ["a", "c"]
    assert json.loads(kept.read_text())["failed"] == {"b": "(ArithmeticError: no number)"}
    assert (results / "one.partial.png").is_file()
    assert not (results / "one.png").exists()
    said = capsys.readouterr()
    assert "b is not measured (ArithmeticError: no number)" in said.out
    assert str(kept) in said.err


def test_a_run_that_is_stopped_keeps_its_rows(results):
    with pytest.raises(KeyboardInterrupt):
        measure_three(stopped)
    assert list(rows(results / "one.partial.json")) == ["a"]
    assert not (results / "one.json").exists()
    with study() as run:
        run.keep("a", {"nll_nats": 1.0})
    assert [path.name for path in results.iterdir()] == ["one.json"]


def test_only_the_scale_cpu_has_the_bare_name(results):
    for scale in SCALES:
        with study(scale=scale) as run:
            assert run.scale == SCALES[scale]
    names = {path.name for path in results.iterdir()}
    assert names == {"one.json", "one_smoke.json", "one_paper.json"}


def test_each_row_has_the_numbers_of_the_seed_whatever_was_measured_before(results):
    def draw() -> dict[str, float]:
        return {"u": torch.rand(()).item()}

    torch.manual_seed(11)
    state = torch.get_rng_state()
    with study(seed=5) as run:
        first = torch.rand(())
        run.measure("a", draw)
        run.measure("b", draw)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(()))
    assert run.rows["a"]["u"] == run.rows["b"]["u"] == first.item()


def test_a_gain_is_the_difference_on_the_same_data(results):
    log_p = torch.randn(30)
    noise = torch.randn(30)
    with study() as run:
        run.keep("a", {"log_p": log_p + 0.25}, published={"nll_nats": 84.5})
        run.keep("b", {"log_p": log_p}, published={"nll_nats": 85.0})
        run.keep("c", {"log_p": log_p + noise})
        run.order([("a", "b"), ("c", "b"), ("a", "left out")])
    first, second = json.loads((results / "one.json").read_text())["order"]
    assert "log_p" not in run.rows["a"]
    assert first["gain_nats"] == pytest.approx(0.25, abs=1e-6)
    assert first["gain_nats_standard_error"] == pytest.approx(0.0, abs=1e-6)
    assert first["published_gain_nats"] == 0.5
    error = noise.double().std().item() / math.sqrt(30)
    assert second["gain_nats_standard_error"] == pytest.approx(error, rel=1e-4)
    assert "published_gain_nats" not in second


def test_the_table_sets_what_is_measured_beside_what_is_published(results):
    found = {"nll_nats": 84.4567, "nll_nats_standard_error": 0.255, "active_units": 1250}
    with study() as run:
        run.keep("a", found | {"log_p": torch.ones(4)}, published={"nll_nats": 84.5})
        run.keep("b", {"active_units": 3, "seconds": 61.7, "log_p": torch.zeros(4)})
        run.order([("a", "b")])
        lines = run.table({"nll_nats": "nats", "active_units": "active", "seconds": "s"})
    assert lines[:4] == [
        "| | nats | published | active | s |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | 84.46 ± 0.26 | 84.50 | 1,250 |  |",
        "| b |  |  | 3 | 62 |",
    ]
    assert lines[4] == "\na over b: +1.00 ± 0.00 nats"
    assert lines[5] == "\nShortened: epochs 20 instead of 2,000."


def test_nothing_is_called_shortened_at_the_scale_of_the_paper(results):
    with study(scale="paper") as run:
        assert run.label == ""
        run.keep("a", {"nll_nats": 1.0})
        run.show({"nll_nats": "nats"})
    assert (results / "one_paper.png").is_file()


def test_the_figure_shows_every_number_with_its_error_and_the_published_one(results, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, *_, **__: drawn.append(self)
    )
    with study() as run:
        run.keep("a", {"x": 3.0, "x_standard_error": 0.5}, published={"x": 2.0})
        run.keep("b", {"y": 1.0})
        run.keep("c", {"x": 4.0, "y": 7.0})
        run.draw({"x": "x, nats", "y": "y"})
    left, right = drawn[0].axes
    measured, published = left.containers[0], left.lines[-1]
    assert measured.lines[0].get_xydata().tolist() == [[3.0, 0.0], [4.0, 2.0]]
    assert measured.lines[2][0].get_segments()[0][:, 0].tolist() == [2.5, 3.5]
    assert published.get_xydata().tolist() == [[2.0, 0.0]]
    assert right.containers[0].lines[0].get_xydata().tolist() == [[1.0, 1.0], [7.0, 2.0]]
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c"]
    assert drawn[0].get_suptitle() == "Shortened: epochs 20 instead of 2,000."


def test_judging_returns_one_bound_and_one_estimate_of_the_same_data():
    vae = VAE.assemble((4,), (2,))
    x = torch.bernoulli(torch.full((30, 4), 0.5))
    found = judge(vae, x, num_samples=200)
    assert found["nll_nats"] == pytest.approx(-found["log_p"].double().mean().item(), abs=1e-5)
    assert found["bits_per_dim"] == pytest.approx(found["nll_nats"] / (4 * math.log(2)), rel=1e-5)
    assert found["elbo_nats"] == pytest.approx(-found["rate_nats"] - found["distortion_nats"])
    assert found["elbo_nats"] < -found["nll_nats"] + 0.05
    assert found["active_units"] == 0
    assert 1 <= found["effective_sample_size"] <= 200


@pytest.mark.parametrize(("rows", "num"), [(100, 10), (105, 10), (7, 7), (5, 9)])
def test_rows_are_taken_at_equal_distances(rows, num):
    taken = spread(torch.arange(rows), num)
    assert len(taken) == min(rows, num)
    assert len(taken.diff().unique()) == 1
    assert taken[-1] > rows * 0.75


TITLES = {"one, k = 1": 1, "one, k = 50": 2, "two, k = 1": 3}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*", [1, 3]), ("one*", [1]), ("one, k = 50", [2]), ("two, k = 1", [3])],
)
def test_rows_are_chosen_by_their_titles(pattern, expected):
    found = chosen(TITLES, pattern, left_out=("one, k = 50",))
    assert list(found.values()) == expected


def test_a_pattern_without_a_row_is_refused():
    with pytest.raises(ValueError, match=r"^rows='three\*': no row .* one, k = 1; one, k = 50"):
        chosen(TITLES, "three*")


def test_what_no_row_has_is_not_shown(results, capsys):
    with study() as run:
        run.keep("a", {"x": 1.0})
        run.show({"x": "x", "y": "y"})
    assert capsys.readouterr().out.startswith("| | x |\n")


def test_a_records_command_can_be_pasted_into_a_shell(results, monkeypatch):
    arguments = ["one.py", "--rows", "VAE, k = 50", "--data_root", "a folder/o'clock"]
    monkeypatch.setattr(sys, "argv", arguments)
    with study(scale="cpu") as open_study:
        open_study.keep("a", {"nll_nats": 1.0})
    found = json.loads((results / "one.json").read_text())["command"]
    assert shlex.split(found) == ["python", *arguments]
