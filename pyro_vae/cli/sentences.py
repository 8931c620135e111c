"""What a run of texts makes of them: reconstructions, samples, and the way between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli.attempts import optional
from pyro_vae.cli.runs import Run
from pyro_vae.datasets import Vocabulary
from pyro_vae.report.texts import TextTable
from pyro_vae.terminal import on_one_line

__all__ = ["in_the_terminal", "sentences", "texts_of_rows"]

_NUM_COMPARED = 8
_NUM_SAMPLES = 16
_NUM_PAIRS = 2
_NUM_STEPS = 7
_WIDTH = 100


def sentences(run: Run) -> list[TextTable]:
    """Return a run's texts as tables; none of a run of other data."""
    vocabulary = run.data.vocabulary
    if vocabulary is None:
        return []
    found = [
        optional("the reconstructed texts", lambda: [_reconstructions(run, vocabulary)]),
        optional("the sampled texts", lambda: [_samples(run, vocabulary)]),
        optional("the texts between two", lambda: _between(run, vocabulary)),
    ]
    return [table for tables in found for table in tables or []]


def texts_of_rows(found: Any, vocabulary: Vocabulary) -> list[str]:
    """Return the texts of rows that a program generates, by site or of its one site.

    Raises:
        ValueError: If none of its sites generates the numbers of symbols.
    """
    by_site = found if isinstance(found, Mapping) else {"": found}
    for values in by_site.values():
        if _are_numbers(values, vocabulary):
            return vocabulary.decode(values.cpu())
    raise ValueError(
        "no site of the program generates whole numbers of symbols: take a likelihood of "
        "sequences, such as CategoricalSequence"
    )


def in_the_terminal(table: TextTable) -> Iterator[str]:
    """Yield a few rows for the terminal: a line for each text, which is cut where it is long."""
    yield f"{table.caption}:"
    width = max(map(len, table.columns))
    for row in table.rows[: table.num_printed]:
        for name, text in zip(table.columns, row, strict=True):
            line = on_one_line(text)
            cut = f"{line[: _WIDTH - 3]}..." if len(line) > _WIDTH else line
            yield f"  {name:<{width}}  {cut}".rstrip()


def _are_numbers(values: Tensor, vocabulary: Vocabulary) -> bool:
    whole = bool((values == values.round()).all())
    return whole and float(values.min()) >= 0 and float(values.max()) < len(vocabulary)


def _reconstructions(run: Run, vocabulary: Vocabulary) -> TextTable:
    rows, program = run.test_rows()[:_NUM_COMPARED], run.program
    likeliest = evaluation.reconstruct(run.typical_model, program.guide, rows)
    drawn = evaluation.reconstruct(program.model, program.guide, rows, stochastic=True)
    columns = [vocabulary.decode(rows.x.cpu())]
    columns += [texts_of_rows(found, vocabulary) for found in (likeliest, drawn)]
    caption = "Test data, and their reconstructions: the likeliest symbols, and a draw"
    return TextTable(caption, ("data", "likeliest", "draw"), [*zip(*columns, strict=True)], 3)


def _samples(run: Run, vocabulary: Vocabulary) -> TextTable:
    found = evaluation.prior_samples(
        run.program.model, run.rows_like(None), _NUM_SAMPLES, stochastic=True
    )
    texts = texts_of_rows(found, vocabulary)
    caption = "Drawn from the model: z from the prior, x from p(x | z)"
    return TextTable(caption, ("sample",), [(text,) for text in texts], 5)


def _between(run: Run, vocabulary: Vocabulary) -> list[TextTable]:
    rows = run.test_rows()
    pairs = min(_NUM_PAIRS, len(rows))
    found = evaluation.interpolate(
        run.typical_model, run.program.guide, rows[:pairs], rows[-pairs:], num_steps=_NUM_STEPS
    )
    by_site = found if isinstance(found, Mapping) else {"": found}
    flat = {name: values.flatten(0, 1) for name, values in by_site.items()}
    texts = [(text,) for text in texts_of_rows(flat, vocabulary)]
    caption = "Between the posterior means of two test data: the likeliest symbols"
    return [
        TextTable(caption, ("text",), texts[begin : begin + _NUM_STEPS], 0 if begin else _NUM_STEPS)
        for begin in range(0, len(texts), _NUM_STEPS)
    ]
