"""What a run of a table makes of it: rows with the names of columns, as files and in the report."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli.attempts import optional
from pyro_vae.cli.observed_sites import observed_support
from pyro_vae.cli.runs import Run
from pyro_vae.datasets import Data, Table
from pyro_vae.engine.data import observe_once
from pyro_vae.files import replace_file
from pyro_vae.report.texts import TextTable

__all__ = [
    "SUFFIXES",
    "described",
    "filled",
    "refuse_missing",
    "sampled_rows",
    "table_of",
    "write_table",
]

SUFFIXES = (".csv", ".tsv", ".parquet", ".feather", ".xlsx")
_NUM_LISTED = 20
_NUM_SAMPLES = 16
_MOST_COLUMNS = 12


def described(table: Table) -> Iterator[str]:
    """Yield a line for each column, of many for the first ones."""
    yield from (f"  {column}" for column in table.columns[:_NUM_LISTED])
    if len(table) > _NUM_LISTED:
        yield f"  and {len(table) - _NUM_LISTED:,} other columns"


def table_of(found: Any, table: Table) -> dict[str, list[Any]]:
    """Return the cells of rows that a program generates, by the names of columns.

    Raises:
        ValueError: If no site, or more than one, generates rows of the table.
    """
    by_site = found if isinstance(found, Mapping) else {"": found}
    rows = [values for values in by_site.values() if values[0].numel() == len(table)]
    if len(rows) != 1:
        raise ValueError(
            f"{len(rows)} sites of the program generate rows of {len(table)} columns, and one is a "
            "table; write .npy or .npz"
        )
    return table.decode(rows[0].flatten(1).cpu().numpy())


def filled(rows: Tensor, found: Any, table: Table) -> dict[str, list[Any]]:
    """Return rows, ``[N, D]``, with those of their cells that are missing as a program has them."""
    made = table_of(found, table)
    known, missing = table.decode(rows.cpu().numpy()), torch.isnan(rows).cpu()
    return {
        name: [
            new if hole else old for new, old, hole in zip(made[name], cells, holes, strict=True)
        ]
        for (name, cells), holes in zip(known.items(), missing.T.tolist(), strict=True)
    }


def refuse_missing(run: Run, rows: Data) -> None:
    """Refuse missing cells of a table that a run's program does not take.

    Raises:
        ValueError: If there are some; names the first.
    """
    if run.data.table is None or run.record is None or not bool(rows.x.isnan().any()):
        return
    run.program.to(run.device)
    few = observe_once(run.record.few[:3], run.observation, seed=0, device=run.device)
    support = observed_support(run.bound, few)
    if support is None or bool(support.check(torch.full_like(few.x, torch.nan)).all()):
        return
    row, place = rows.x.isnan().nonzero()[0].tolist()
    raise ValueError(
        f"row {row} has no {run.data.table.names[place]!r}, and the run's program takes complete "
        "rows: fill it in, or train with --likelihood Incomplete"
    )


def write_table(cells: Mapping[str, list[Any]], out: Path) -> str:
    """Write cells by the names of columns as a table, and return a line on the file.

    Raises:
        ValueError: If the file needs a package that is not there.
    """
    separator = {".csv": ",", ".tsv": "\t"}.get(out.suffix)
    content = _as_text(cells, separator) if separator else _by_pandas(cells, out.suffix)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, content)
    num_rows = len(next(iter(cells.values())))
    return f"wrote {out}: {num_rows:,} rows of {len(cells):,} columns"


def _as_text(cells: Mapping[str, list[Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", delimiter=delimiter)
    writer.writerow(cells)
    writer.writerows(zip(*cells.values(), strict=True))  # None is an empty cell
    return text.getvalue().encode("utf-8", "backslashreplace")


def _by_pandas(cells: Mapping[str, list[Any]], suffix: str) -> bytes:
    buffer = io.BytesIO()
    try:
        pandas: Any = importlib.import_module("pandas")
        frame = pandas.DataFrame(cells)
        if suffix == ".xlsx":
            frame.to_excel(buffer, index=False)
        else:
            getattr(frame, f"to_{suffix[1:]}")(buffer)
    except ImportError as error:
        raise ValueError(
            f"{suffix} is written by pandas, which is not there or needs "
            f"{error.name or 'a package'}: pip install 'pyro-vae[tables]', or end the file in .csv"
        ) from None
    return buffer.getvalue()


def sampled_rows(run: Run) -> list[TextTable]:
    """Return rows that a run's model draws beside test data; none of a run of other data."""
    table = run.data.table
    if table is None:
        return []
    return optional("the sampled rows", lambda: [*_samples(run, table)]) or []


def _samples(run: Run, table: Table) -> Iterator[TextTable]:
    test = run.test_rows().x[:_NUM_SAMPLES]
    drawn = evaluation.prior_samples(
        run.program.model, run.rows_like(None), _NUM_SAMPLES, stochastic=True
    )
    for caption, cells in (
        ("Test data", table.decode(test.cpu().numpy())),
        ("Drawn from the model: z from the prior, x from p(x | z)", table_of(drawn, table)),
    ):
        names = [*cells][:_MOST_COLUMNS]
        rows = [tuple(map(_shown, row)) for row in zip(*(cells[n] for n in names), strict=True)]
        others = len(cells) - len(names)
        yield TextTable(
            caption + (f" (without {others} other columns)" if others else ""),
            tuple(names),
            rows,
            0,
        )


def _shown(cell: Any) -> str:
    return "" if cell is None else f"{cell:.5g}" if isinstance(cell, float) else str(cell)
