"""Tables: kinds of columns, cells as numbers and back, and a run that is of one."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from command import TINY
from pyro import poutine

import pyro_vae
from pyro_vae import datasets, distributions
from pyro_vae.cli import main
from pyro_vae.datasets import Column, Table, TableReading
from pyro_vae.datasets.sheets import sheet_of
from pyro_vae.datasets.table_kinds import described
from pyro_vae.evaluation.drawing import Likeliest

NUM_ROWS = 40
DAYS = [f"2024-0{1 + n % 9}-1{n % 7}" for n in range(NUM_ROWS)]
RNG = np.random.default_rng(0)
POISSON = RNG.poisson(9.0, NUM_ROWS).tolist()

# The cells of a column, the kind that is found, and its categories.
KINDS: dict[str, tuple[list[Any], str, tuple[str, ...]]] = {
    "fractions": ([n / 7 for n in range(NUM_ROWS)], "real", ()),
    "negative": ([n - 20 for n in range(NUM_ROWS)], "real", ()),
    "years": ([1970 + n % 20 for n in range(NUM_ROWS)], "real", ()),
    "large": (RNG.poisson(90.0, NUM_ROWS).tolist(), "real", ()),
    "bits": ([n % 2 for n in range(NUM_ROWS)], "binary", ()),
    "yes": (["no", "yes"] * 20, "binary", ("no", "yes")),
    "truth": ([True, False] * 20, "binary", ("False", "True")),
    "counts": (POISSON, "count", ()),
    "few": ([(2, 10, 1)[n % 3] for n in range(NUM_ROWS)], "categorical", ("1", "2", "10")),
    "colours": (["red", "blue", "green", ""] * 10, "categorical", ("blue", "green", "red")),
    "signs": ([(-0.5, 2.5)[n % 2] for n in range(NUM_ROWS)], "binary", ("-0.5", "2.5")),
    "halves": ([n % 4 / 2 for n in range(NUM_ROWS)], "categorical", ("0", "0.5", "1", "1.5")),
    "codes": (["007", "010", "100", "200"] * 10, "categorical", ("007", "010", "100", "200")),
    "days": (DAYS, "date", ()),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_found(name: str) -> None:
    cells, kind, categories = KINDS[name]
    for given in (cells, [None if n % 5 == 1 else cell for n, cell in enumerate(cells)]):
        sheet = sheet_of({"a": given})
        assert sheet is not None
        (column,) = described(sheet, "table", TableReading()).columns
        assert (column.kind, column.categories) == (kind, categories)


def _table(folder: Path, *, constant: bool = True) -> Path:
    """Write a table with an identifier, labels, missing cells, and a column that never differs."""
    path = folder / "holes.csv"
    columns = ("fractions", "counts", "yes", "few", "days", "bits")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns, *["constant"] * constant, "label"])
        for row in range(NUM_ROWS):
            cells = [str(KINDS[name][0][row]) for name in columns]
            if row % 4 == 1:
                cells[row % len(cells)] = ("", "NA", "null")[row % 3]
            writer.writerow([f"p{row}", *cells, *[3] * constant, "ab"[row % 2]])
    return path


READING = TableReading(ignore=("id",), label_column="label")


@pytest.mark.filterwarnings("ignore:.*the same in all rows")
def test_cells_come_back(tmp_path: Path) -> None:
    path = _table(tmp_path)
    data = datasets.load(path, table=READING)
    table = data.table
    assert table is not None
    assert Table.from_json(table.to_json()) == table
    assert (table.left_out, table.label_column, data.classes) == (
        ("id", "constant"),
        "label",
        ("a", "b"),
    )
    assert data.levels is None
    assert data.train.x.dtype == torch.float32
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for part in data.parts.values():
        found = table.decode(part.x.numpy())
        for place, row in enumerate(np.asarray(part.rows).tolist()):
            for name in table.names:
                cell, written = found[name][place], rows[row][name]
                if written in ("", "NA", "null"):
                    assert cell is None
                elif name == "fractions":
                    assert math.isclose(cell, float(written), rel_tol=1e-6)
                else:
                    assert str(cell) == written


@pytest.mark.filterwarnings("ignore:.*the same in all rows")
@pytest.mark.parametrize("suffix", ["", ".parquet", ".feather", ".xlsx"])
def test_frames_are_read_as_files_are(tmp_path: Path, suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    path = _table(tmp_path)
    expected, given = datasets.load(path, table=READING), pandas.read_csv(path)
    if suffix:
        pytest.importorskip("openpyxl" if suffix == ".xlsx" else "pyarrow")
        path = path.with_suffix(suffix)
        write = {".xlsx": "to_excel"}.get(suffix, f"to_{suffix[1:]}")
        getattr(given, write)(path, **({"index": False} if suffix == ".xlsx" else {}))
        found = datasets.load(path, table=READING)
    else:
        found = datasets.from_arrays(given, name="frame", table=READING)
    assert found.table == expected.table
    torch.testing.assert_close(found.train.fields, expected.train.fields, equal_nan=True)


TABLE = Table((Column("a", "real"), Column("b", "categorical", ("x", "y")), Column("n", "count")))

BAD = {
    "missing": ({"a": [1.0], "b": ["x"]}, r"no column 'n'; it has 'a', 'b'"),
    "unknown": ({"a": [1.0, 2], "b": ["x", "z"], "n": [1, 2]}, r"row 1 is 'z'.*categories x, y"),
    "kind": ({"a": ["q"], "b": ["x"], "n": [1]}, r"column 'a': row 0 is 'q'.*numbers \(real\)"),
    "negative": ({"a": [1.0], "b": ["x"], "n": [-1]}, r"row 0 is '-1'.*counts 0, 1, 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_columns_are_refused_by_name(name: str) -> None:
    cells, said = BAD[name]
    sheet = sheet_of(cells)
    assert sheet is not None
    with pytest.raises(ValueError, match=said):
        TABLE.encode(sheet)


def test_reordered_columns_are_read_and_others_told() -> None:
    sheet = sheet_of({"more": [0], "n": [4], "b": ["y"], "a": [None]})
    assert sheet is not None
    with pytest.warns(UserWarning, match="'more': not known from training, and left out"):
        found = TABLE.encode(sheet)
    np.testing.assert_array_equal(found, [[math.nan, 1.0, 4.0]])


FILES = {
    "ragged": (b"a,b\n1,2\n3\n", "line 3 has 1 cells, the header 2"),
    "twice": (b"a,a\n1,2\n", "two columns are called 'a'"),
    "separator": (b"a b c\n1 2 3\n", "part columns by a comma, semicolon or tab"),
    "latin": (b"a,b\n1,\xe9\n", "no UTF-8: line 2, byte 6 of the file is 0xe9"),
    "header": (b"a,b\n", "a header, a, b, and no row below it"),
    "numbers": (b"1,2\n3,4\n", "no header: the first line holds numbers alone"),
    "constant": (b"a,b\n1,\n1,\n1,\n", "no column is left to model"),
    "comma": (b"a;b\n" + b"".join(b"1,%d;1\n" % n for n in range(30)), "decimal comma"),
    "identifier": (b"a\n" + b"".join(b"p%d\n" % n for n in range(30)), "30 different texts in 30"),
}


@pytest.mark.filterwarnings("ignore:.*the same in all rows")
@pytest.mark.parametrize("name", FILES)
def test_no_tables_are_refused(tmp_path: Path, name: str) -> None:
    content, said = FILES[name]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        datasets.load(tmp_path / "a.csv")


def test_kinds_are_given_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f"{n % 3},{n}\n" for n in range(12)))
    found = datasets.load(path, table=TableReading({"a": "real", "b": "categorical"})).table
    assert found is not None
    assert [column.kind for column in found.columns] == ["real", "categorical"]
    assert found.columns[1].categories == tuple(map(str, range(12)))  # by their values
    with pytest.raises(ValueError, match="has no column of that name: it has a, b"):
        datasets.load(path, table=TableReading({"c": "real"}))
    with pytest.raises(ValueError, match="a column is real, positive"):
        TableReading({"a": "reel"})


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tables")
    words = [
        "train",
        *TINY,
        "--data",
        str(_table(place, constant=False)),
        "--out",
        str(place / "run"),
    ]
    assert main([*words, "--ignore", "id", "--label-column", "label", "--columns", "few=real"]) == 0
    return place


def test_a_run_gives_tables_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, place = pyro_vae.load(folder / "run"), str(folder / "run")
    assert type(run.program.likelihood.family).__name__ == "Incomplete"
    path = folder / "holes.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [row[name] for row in rows] for name in reversed(rows[0])}
    latents = run.encode(columns)
    torch.testing.assert_close(
        run.encode({n: c[::-1] for n, c in columns.items()}), latents.flip(0)
    )
    assert main(["sample", place, "--num", "5", "--out", str(folder / "s.csv")]) == 0
    with (folder / "s.csv").open(newline="") as file:
        drawn = list(csv.DictReader(file))
    assert len(drawn) == 5
    assert {row["yes"] for row in drawn} <= {"no", "yes"}
    assert all(row["counts"].isdecimal() and row["few"].lstrip("-").isdecimal() for row in drawn)
    assert main(["impute", place, "--data", str(path), "--out", str(folder / "full.csv")]) == 0
    with (folder / "full.csv").open(newline="") as file:
        full = list(csv.DictReader(file))
    typical = run.reconstruct(columns)
    for name in run.table.names if run.table is not None else ():
        for place_, (row, made) in enumerate(zip(rows, full, strict=True)):
            if row[name] in ("", "NA", "null"):
                assert made[name] == str(typical[name][place_])
            elif name != "fractions":
                assert made[name] == row[name]
    capsys.readouterr()
    assert main(["encode", str(folder / "run"), "--data", str(path), "--out", "z.txt"]) == 2


def test_a_run_of_complete_rows_refuses_missing_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, place = tmp_path / "a.csv", str(tmp_path / "run")
    path.write_text("a,b\n" + "".join(f"{n / 7},{n % 2}\n" for n in range(20)))
    assert main(["train", *TINY, "--data", str(path), "--out", place]) == 0
    path.write_text("a,b\n0.5,1\n,0\n")
    assert main(["score", place, "--data", str(path)]) == 2
    assert "row 1 has no 'a', and the run's program takes complete rows" in capsys.readouterr().err
    with pytest.raises(ValueError, match="row 0 has no 'b'"):
        pyro_vae.load(place).encode({"a": [0.5, 1], "b": [None, 1]})


def test_the_typical_category_is_the_likeliest() -> None:
    logits = torch.tensor([[[0.4, 0.0, 0.3]]]).log()  # whose mean lies between them

    def model(x: torch.Tensor) -> Any:
        entries = distributions.Columns([distributions.Categorical(logits)])
        fill = torch.zeros(1)
        fn = distributions.Incomplete(entries, fill).to_event(1)
        return pyro.sample("x", fn, obs=x)

    x = torch.tensor([[math.nan]])
    plain, likeliest = (poutine.trace(m).get_trace(x).nodes["x"]["fn"]
                        for m in (model, Likeliest()(model)))  # fmt: skip
    assert 0 < plain.mean.item() < 2
    assert likeliest.mean.item() == 0.0
    value = torch.tensor([[2.0]])
    torch.testing.assert_close(plain.log_prob(value), likeliest.log_prob(value))
