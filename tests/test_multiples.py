"""What a part costs is measured on programs that train, as a multiple of the plain one's step."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import multiples
import speed
import variants
from programs import Perceptrons

TINY = Perceptrons(4, (6,), 4, 8, num_data=16)
MEMBERS = {
    f"{title}: {name}": replace(group, program=TINY, members={name: member})
    for title, group in variants.GROUPS.items()
    for name, member in group.members.items()
}


# Parts are trained by tests of their own: here, the first two and the last member of each group.
QUICK = {
    f"{title}: {name}"
    for title, group in variants.GROUPS.items()
    for name in [*list(group.members)[:2], *list(group.members)[-1:]]
}


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(group, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, group in MEMBERS.items()
    ],
)
def test_every_member_trains(group):
    (member,) = group.members.values()
    loss = variants.trained("eager", member, group.program)(2)
    assert math.isfinite(loss)


def test_members_are_timed_in_one_process_where_others_use_the_machine(tmp_path):
    found = tmp_path / "here"
    options = ["--groups", "normal", "--members", "Reconstruction", "--here", "--rounds", "2"]
    with pytest.MonkeyPatch.context() as patch:
        groups = {name: replace(group, program=TINY) for name, group in variants.GROUPS.items()}
        patch.setattr(multiples, "GROUPS", groups)
        multiples.main([*options, "--name", str(found)])
    record = json.loads(found.with_suffix(".json").read_text())
    ((plain, row),) = (rows.values() for rows in record["groups"].values())
    assert plain["multiple"] == 1
    assert row["median_ms"] > 0
    assert record["protocol"].startswith("Each group")
    assert record["clock"].startswith("processor time")


def test_rows_are_multiples_of_the_first_member(monkeypatch, tmp_path, capsys):
    times = {"ELBO": [2.0, 2.0, 9.0], "IWAE": [3.0, 3.0, 3.0]}

    def measured(program, chosen, rounds, threads):
        assert list(chosen) == ["ELBO", "IWAE", "Renyi"]
        timed = {n: speed.Timed(0.0, None, 1.0, 100.0, 200.0, t) for n, t in times.items()}
        return timed, {"Renyi": "it fails"}

    group = next(iter(variants.GROUPS.values()))
    members = {name: group.members[name] for name in ("ELBO", "IWAE", "Renyi")}
    monkeypatch.setattr(multiples, "GROUPS", {"some": replace(group, members=members)})
    monkeypatch.setattr(speed, "measure", measured)
    multiples.main(["--name", str(tmp_path / "record")])
    rows = json.loads((tmp_path / "record.json").read_text())["groups"]["some"]
    assert (rows["ELBO"]["multiple"], rows["IWAE"]["multiple"]) == (1.0, 1.5)
    assert rows["Renyi"] == {"left_out": "it fails"}
    assert "| IWAE | 3.00 | 1.50 | 200 |" in capsys.readouterr().out
