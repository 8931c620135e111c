"""What a trained run says of each row of a file: latents, reconstructions, scores, blanks."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.cli.parser import Parser
from pyro_vae.cli.rows_of_tables import SUFFIXES, filled, table_of, write_table
from pyro_vae.cli.sample_files import as_lines, num_texts
from pyro_vae.cli.sentences import texts_of_rows
from pyro_vae.cli.trained import opened, place_of, run_parser
from pyro_vae.cli.trained_run import TrainedRun
from pyro_vae.datasets import Data
from pyro_vae.datasets.data import in_order
from pyro_vae.evaluation import ImportanceEstimate
from pyro_vae.files import replace_file
from pyro_vae.terminal import on_one_line

__all__ = ["encode", "impute", "reconstruct", "score"]

_SUFFIXES = (".npy", ".npz", ".csv")


def encode(arguments: list[str]) -> None:
    """Write the posterior mean of the latents of each row."""
    description = "Write the latents of each row: their mean given the row."
    parser = _parser("encode", description, "latents")
    run, rows, options = _opened(parser, arguments)
    _write(run.encoded(rows), options, "latents", of="z")


def reconstruct(arguments: list[str]) -> None:
    """Write each row as the program sees it through its latents."""
    parser = _parser(
        "reconstruct", "Write each row as the program sees it through its latents.",
        "reconstructions",
    )  # fmt: skip
    parser.flag(parser, "--draw", "draw latents and rows in place of means")
    run, rows, options = _opened(parser, arguments, suffixes=(*_SUFFIXES, ".txt", *SUFFIXES[1:]))
    found = run.reconstructed(rows, stochastic=options.draw, seed=options.seed or 0)
    as_numbers = options.out is not None and options.out.suffix in (".npy", ".npz")
    if run.table is not None and not as_numbers:
        _write_cells(table_of(found, run.table), options, "reconstructions")
    elif run.vocabulary is None or as_numbers:
        _write(found, options, "reconstructions", of="x")
    else:
        _write_texts(texts_of_rows(found, run.vocabulary), options)


def impute(arguments: list[str]) -> None:
    """Write a table with its missing cells filled, given those that are there."""
    description = (
        "Write a table with its missing cells filled through the latents given the cells that are "
        "there: means and likeliest categories, or draws."
    )
    parser = _parser("impute", description, "imputed")
    parser.flag(parser, "--draw", "draw latents and missing cells in place of means")
    run, rows, options = _opened(parser, arguments, suffixes=SUFFIXES)
    if run.table is None:
        raise ValueError(
            f"{options.run} is of no table with names of columns, whose missing cells are filled"
        )
    found = run.reconstructed(rows, stochastic=options.draw, seed=options.seed or 0)
    _write_cells(filled(rows.x, found, run.table), options, "imputed")
    print(f"{int(rows.x.isnan().sum()):,} missing cells filled")


def _write_cells(cells: dict[str, list[Any]], options: Namespace, what: str) -> None:
    print(on_one_line(write_table(cells, options.out or options.place / f"{what}.csv")))


def _write_texts(texts: list[str], options: Namespace) -> None:
    out = options.out or options.place / "reconstructions.txt"
    out.parent.mkdir(parents=True, exist_ok=True)
    as_table = out.suffix == ".csv"
    replace_file(out, _table(["row", "x"], enumerate(texts)) if as_table else as_lines(texts))
    print(on_one_line(f"wrote {out}: {num_texts(texts)}"))


def score(arguments: list[str]) -> None:
    """Write log p(x) of each row, by importance sampling, and show the least likely ones."""
    parser = _parser(
        "score", "Write log p(x) of each row in nats, by importance sampling, with its standard "
        "error: the least likely rows are anomalies.", "scores",
    )  # fmt: skip
    parser.option(parser, "--num-samples", int, "number of importance samples per row", 1000)
    parser.option(parser, "--show", int, "number of least likely rows to print", 5)
    run, rows, options = _opened(parser, arguments)
    found = run.scored(rows, num_samples=options.num_samples, seed=options.seed or 0)
    columns = {
        "log_p_nats": found.log_p.cpu(),
        "standard_error": _standard_error(found).cpu(),
        "effective_sample_size": found.effective_sample_size.cpu(),
    }
    _write(columns, options, "scores")
    order = found.log_p.argsort()[: options.show].tolist()
    for row in order:
        error = float(columns["standard_error"][row])
        said = f"row {row}: log p(x) {float(found.log_p[row]):,.2f} +- {error:.2f} nats"
        text = "" if run.vocabulary is None else f": {run.vocabulary.decode(rows.x[[row]])[0]}"
        print(on_one_line(f"{said}{text}"))


def _parser(command: str, description: str, what: str) -> Parser:
    parser = run_parser(command, description)
    help_ = (
        f"output file: .npy, .npz or .csv (default: RUN/{what}.npy, or .npz of several sites; .csv "
        "of tables that are written as such)"
    )
    parser.option(parser, "--out", Path | None, help_)
    return parser


def _opened(
    parser: Parser, arguments: list[str], *, suffixes: tuple[str, ...] = _SUFFIXES
) -> tuple[TrainedRun, Data, Namespace]:
    """Return the run, the rows of ``--data`` or its own, in their order, and the options."""
    given = parser.config(parser.read_line(arguments))
    if given.out is not None and given.out.suffix not in suffixes:
        raise ValueError(f"--out {given.out}: end the file in {', '.join(suffixes)}")
    run, done, options, _ = opened(parser, arguments, compares=False)
    options.place = place_of(run, options.run)
    return TrainedRun(run, done, options.run), in_order(run.data), options


def _standard_error(found: ImportanceEstimate) -> Tensor:
    """Return that of each log p(x), by the delta method: the relative error of the mean weight."""
    spread = (found.num_samples / found.effective_sample_size - 1).clamp(min=0)
    return (spread / max(1, found.num_samples - 1)).sqrt()


def _write(
    found: Tensor | Mapping[str, Tensor], options: Namespace, what: str, *, of: str = ""
) -> None:
    several = isinstance(found, Mapping)
    suffix = ".npz" if several else ".npy"
    out = options.out or options.place / f"{what}{suffix}"
    if out.suffix != ".csv" and out.suffix != suffix:
        held = f"several arrays ({', '.join(found)})" if isinstance(found, Mapping) else "one array"
        raise ValueError(f"--out {out}: there is {held}; end the file in {suffix} or .csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, _as_csv(found, of) if out.suffix == ".csv" else _as_arrays(found))
    print(on_one_line(f"wrote {out}: {_shapes(found)}"))


def _shapes(found: Tensor | Mapping[str, Tensor]) -> str:
    if isinstance(found, Tensor):
        return str(tuple(found.shape))
    return ", ".join(f"{name} {tuple(values.shape)}" for name, values in found.items())


def _as_arrays(found: Any) -> bytes:
    buffer = io.BytesIO()
    if isinstance(found, Tensor):
        np.save(buffer, found.numpy(), allow_pickle=False)
    else:
        np.savez(buffer, **{name: values.numpy() for name, values in found.items()})
    return buffer.getvalue()


def _as_csv(found: Any, of: str) -> bytes:
    """Return a line for each row under the names of its numbers, such as z.0, z.1."""
    tables = {of: found} if isinstance(found, Tensor) else found
    names: list[str] = []
    for name, values in tables.items():
        width = values[0].numel() if len(values) else 0
        names += [name] if values.dim() == 1 else [f"{name}.{n}" for n in range(width)]
    rows = torch.cat([values.reshape(len(values), -1).double() for values in tables.values()], 1)
    lines = ([number, *(f"{v:.9g}" for v in row)] for number, row in enumerate(rows.tolist()))
    return _table(["row", *names], lines)


def _table(header: list[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode("utf-8", "backslashreplace")
