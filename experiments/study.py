"""A run that is held against a paper: measured row by row, kept as it goes, shown in one form.

    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        for title, row in TABLE.items():
            found = partial(run, row, study.scale)
            study.measure(title, found, published={"nll_nats": row.nll_nats})
        study.order(ORDER)
        study.show({"nll_nats": "-log p(x), nats", "active_units": "active units"})

An experiment has three scales: "smoke", for the tests, takes seconds and shows that it runs; "cpu"
is what two cores can do, a schedule cut down where the published one takes days; "paper" is what
was published. The record says what was cut down, and the table and the figure say it with it.

A number is kept under a name that ends in its unit, as ``nll_nats``; its standard error, where it
has one, under the same name and ``_standard_error``. What was published for the row lies under
``published`` by the same names.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import record
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import evaluation

__all__ = ["ScaleName", "Study", "chosen", "judge", "spread"]

ScaleName = Literal["smoke", "cpu", "paper"]
Scale = TypeVar("Scale", bound=NamedTuple)
Row = TypeVar("Row")

_ERROR = "_standard_error"


class Study(Generic[Scale]):
    """One run of an experiment, and the record of what it has measured.

    After each row the record so far lies in ``results/NAME.partial.json``; when all is measured it
    becomes ``results/NAME.json``. A row that fails is told and left out, and the others are still
    measured; then, and where the run is stopped, the partial record stays, and the last complete
    one is untouched. At another scale than "cpu", "NAME" ends in it. All random numbers start at
    the seed, those of each measured row anew, and torch's own are afterwards as they were.

    Args:
        file: Of the experiment, whose name the record has.
        doc: The experiment's docstring: a question, the command, the protocol.
        scales: What is run at each scale, in named tuples of the experiment's own.
        scale: Which of them is run.
        seed: Of all random numbers.
        name: Of the record, in place of the experiment's: below ``results``, or a whole path.

    Attributes:
        scale: What is run.
        seed: Of all random numbers.
        rows: What is measured, by title.
        log_p: log p(x) of the test data, ``[N]``, of each row that holds it.

    Raises:
        RuntimeError: On leaving, if a row could not be measured.
    """

    def __init__(
        self,
        file: str,
        doc: str,
        scales: Mapping[ScaleName, Scale],
        *,
        scale: ScaleName = "cpu",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        self.scale: Scale = scales[scale]
        self.seed = seed
        self.rows: dict[str, dict[str, Any]] = {}
        self.log_p: dict[str, Tensor] = {}
        self._name = name or Path(file).stem + ("" if scale == "cpu" else f"_{scale}")
        self._failed: dict[str, str] = {}
        self._stack, self._start = ExitStack(), 0.0
        question, *rest = doc.strip().split("\n\n")
        protocol = [" ".join(each.split()) for each in rest if not each.startswith("    ")]
        self._record: dict[str, Any] = {
            "question": " ".join(question.split()),
            "protocol": " ".join(protocol),
            "command": record.command(),
            "scale": {"name": scale, **self.scale._asdict()},
            "shortened": _shortened(self.scale, scales["paper"]),
            "seed": seed,
        }

    def __enter__(self) -> Study[Scale]:
        self._start = time.perf_counter()
        self._stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(self.seed)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is None and not self._failed:
            path = self._write(self._name)
            self._partial().unlink(missing_ok=True)
            print(path)
            return
        print(f"what was measured is kept in {self._partial()}", file=sys.stderr)
        if kind is None:
            raise RuntimeError(f"not measured: {'; '.join(map(' '.join, self._failed.items()))}")

    @property
    def path(self) -> Path:
        """Where the record lies; pictures beside it begin with its name."""
        return record.path(self._name)

    def measure(
        self,
        title: str,
        function: Callable[[], Mapping[str, Any]],
        *,
        published: Mapping[str, float] | None = None,
    ) -> None:
        """Keep what a function measures, under the seed, and the seconds it takes.

        Args:
            title: Of the row.
            function: Returns numbers by name; those under "log_p", ``[N]``, stay out of the record.
            published: What the paper has for the row, by the same names.
        """
        start = time.perf_counter()
        torch.manual_seed(self.seed)
        try:
            found = dict(function())
        except Exception as error:
            traceback.print_exc()
            self._failed[title] = f"({type(error).__name__}: {error})"
            return
        self.keep(title, {**found, "seconds": time.perf_counter() - start}, published=published)

    def keep(
        self,
        title: str,
        found: Mapping[str, Any],
        *,
        published: Mapping[str, float] | None = None,
    ) -> None:
        """Keep a row that is measured already; the arguments are those of ``measure``."""
        row = dict(found)
        if "log_p" in row:
            self.log_p[title] = row.pop("log_p").cpu().double()
        self.rows[title] = row | ({"published": dict(published)} if published else {})
        numbers = ", ".join(f"{key} {_rounded(value)}" for key, value in _numbers(row).items())
        print(f"{title}: {numbers or 'measured'}", file=sys.stderr, flush=True)
        self._write(f"{self._name}.partial")

    def note(self, **facts: Any) -> None:
        """Keep what belongs to the run and to no row."""
        self._record.update(facts)

    def order(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Keep how much better the first of each pair is than the second, on the same data.

        Args:
            pairs: Titles of rows with ``log_p``, as the paper has them: better, worse. A pair of
                which one is not measured is left out.
        """
        gains = [self._gain(*pair) for pair in pairs if set(pair) <= self.log_p.keys()]
        self.note(order=gains)

    def _gain(self, better: str, worse: str) -> dict[str, Any]:
        gain = self.log_p[better] - self.log_p[worse]
        found = {
            "better": better,
            "worse": worse,
            "gain_nats": gain.mean().item(),
            "gain_nats_standard_error": (gain.std() / math.sqrt(len(gain))).item(),
        }
        nll = [self.rows[each].get("published", {}).get("nll_nats") for each in (better, worse)]
        if None not in nll:
            found["published_gain_nats"] = round(nll[1] - nll[0], 2)
        return found

    def show(self, columns: Mapping[str, str]) -> None:
        """Print the rows as a table and draw them, beside what was published.

        Args:
            columns: The names of numbers, in their order, and what stands above each; one that no
                row has is left out.
        """
        columns = {
            key: head
            for key, head in columns.items()
            if not self.rows or any(key in row for row in self.rows.values())
        }
        print("\n".join(self.table(columns)))
        self.draw(columns)

    def table(self, columns: Mapping[str, str]) -> list[str]:
        """Return lines of Markdown: the rows, a column of published numbers where there are any."""
        known = {key for row in self.rows.values() for key in row.get("published", {})}
        head, rule = ["| |"], ["| --- |"]
        for key, title in columns.items():
            head += [f" {title} |", " published |"] if key in known else [f" {title} |"]
            rule += [" ---: |"] * (2 if key in known else 1)
        lines = ["".join(head), "".join(rule)]
        for title, row in self.rows.items():
            cells = [title]
            for key in columns:
                cells.append(_cell(row, key))
                cells += [_cell(row.get("published", {}), key)] if key in known else []
            lines.append("| " + " | ".join(cells) + " |")
        lines += [f"\n{title} is not measured {why}" for title, why in self._failed.items()]
        lines += [f"\n{_said(gain)}" for gain in self._record.get("order", [])]
        return [*lines, *([f"\n{self.label}"] if self.label else [])]

    @property
    def label(self) -> str:
        """Say what is cut down against the paper; empty where nothing is."""
        short = self._record["shortened"].items()
        parts = [f"{key} {_plain(run)} instead of {_plain(full)}" for key, (run, full) in short]
        return f"Shortened: {'; '.join(parts)}." if parts else ""

    def draw(self, columns: Mapping[str, str]) -> None:
        """Draw the rows from above to below, a panel for each column."""
        size = (2.2 + 2.6 * len(columns), 1.3 + 0.3 * len(self.rows))
        with self.figure(len(columns), size=size, sharey=True) as panels:
            for axes, (key, head) in zip(panels, columns.items(), strict=True):
                _dots(axes, self.rows, key)
                axes.set_xlabel(head, fontsize=8)
                axes.tick_params(labelsize=8)
                axes.margins(0.1, 0.6 / max(1, len(self.rows)))
            panels[0].set_yticks(range(len(self.rows)), list(self.rows), fontsize=8)
            panels[0].invert_yaxis()
            panels[0].tick_params(axis="y", length=0)

    @contextmanager
    def figure(
        self,
        num_panels: int,
        *,
        size: tuple[float, float],
        sharey: bool = False,
        legend: str | None = None,
    ) -> Iterator[Sequence[Axes]]:
        """Open panels to draw in, side by side, which are saved beside the record, with legends.

        Args:
            num_panels: How many.
            size: Of the whole, in inches.
            sharey: Whether the panels have one vertical axis.
            legend: What stands above each legend.
        """
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, num_panels, sharey=sharey, squeeze=False)[0]
        yield panels
        for axes in panels:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7, title_fontsize=7, frameon=False, title=legend)
            axes.spines[["top", "right"]].set_visible(False)
        if self.label:
            figure.suptitle(self.label, fontsize=6, wrap=True)
        partial = ".partial" if self._failed else ""
        figure.savefig(record.path(f"{self._name}{partial}").with_suffix(".png"), dpi=120)

    def save(self, figure: Figure, name: str) -> None:
        """Save a picture beside the record, under its name and one of its own."""
        figure.savefig(record.path(f"{self._name}_{name}").with_suffix(".png"), dpi=120)

    def _partial(self) -> Path:
        return record.path(f"{self._name}.partial")

    def _write(self, name: str) -> Path:
        failed = {"failed": self._failed} if self._failed else {}
        seconds = time.perf_counter() - self._start
        return record.write(name, {**self._record, "seconds": seconds, "rows": self.rows, **failed})


def judge(
    program: Any,
    x: Tensor,
    *,
    num_samples: int,
    count: Callable[[evaluation.UnitActivity], int] = lambda units: units.num_active,
) -> dict[str, Any]:
    """Return what the tables of papers hold of a program, on test data.

    Args:
        program: Has ``model``, ``guide`` and parameters.
        x: As the model observes them, ``[N, ...]``, on any device.
        num_samples: Importance samples for each datum.
        count: Of the active units of a latent site; unless given, Burda, Grosse & Salakhutdinov's.

    Returns:
        Numbers by name, with -log p(x), the bound and its parts, and active units (KL and active
        units of each latent site as well, if there are several); and ``log_p``.
    """
    start = time.perf_counter()
    x = x.to(next(program.parameters()).device)
    model, guide = program.model, program.guide
    estimate = evaluation.importance_sampling(model, guide, x, num_samples=num_samples)
    bound = evaluation.elbo(model, guide, x, num_particles=10)
    units = evaluation.unit_activity(model, guide, x)
    active = {site: count(units[site]) for site in sorted(units)}
    several = len(active) > 1
    return {
        "nll_nats": -estimate.mean,
        f"nll_nats{_ERROR}": estimate.mean.standard_error,
        "bits_per_dim": estimate.bits_per_dim,
        "effective_sample_size": statistics.median(estimate.effective_sample_size.tolist()),
        "elbo_nats": bound.elbo_nats,
        f"elbo_nats{_ERROR}": bound.elbo_nats.standard_error,
        "rate_nats": bound.rate_nats,
        "distortion_nats": bound.distortion_nats,
        "active_units": sum(active.values()),
        **({f"active_units_{each}": active[each] for each in active} if several else {}),
        **({f"rate_nats_{each}": bound.kl_nats[each] for each in active} if several else {}),
        "evaluation_seconds": time.perf_counter() - start,
        "log_p": estimate.log_p,
    }


def chosen(
    table: Mapping[str, Row], pattern: str, *, left_out: Collection[str] = ()
) -> dict[str, Row]:
    """Return the rows of a table that are to be run.

    Args:
        table: All rows, by title.
        pattern: Of their titles, with wildcards as in a shell: ``"two layers*"``.
        left_out: What the scale leaves out, unless its whole title is given.

    Raises:
        ValueError: If no title matches.
    """
    rows = {
        title: row
        for title, row in table.items()
        if title == pattern or (fnmatchcase(title, pattern) and title not in left_out)
    }
    if not rows:
        raise ValueError(
            f"rows={pattern!r}: no row that is run at this scale; there are {'; '.join(table)}"
        )
    return rows


def spread(x: Tensor, num: int) -> Tensor:
    """Return ``num`` rows at equal distances, or all: the order of a file is no accident."""
    return x[:: max(1, len(x) // num)][:num]


def _shortened(run: NamedTuple, paper: NamedTuple) -> dict[str, tuple[Any, Any]]:
    pairs = zip(run._fields, run, paper, strict=True)
    return {key: (here, there) for key, here, there in pairs if here != there}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, (int, float)) and not key.endswith((_ERROR, "seconds"))
    }


def _rounded(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return ""
    error = f" ± {row[key + _ERROR]:.2f}" if key + _ERROR in row else ""
    return f"{row[key]:,.0f}" if key.endswith("seconds") else _rounded(row[key]) + error


def _said(gain: Mapping[str, Any]) -> str:
    said = f"{gain['better']} over {gain['worse']}: {gain['gain_nats']:+.2f} ± "
    said += f"{gain['gain_nats' + _ERROR]:.2f} nats"
    published = gain.get("published_gain_nats")
    return said if published is None else f"{said} (published: {published:+.2f})"


def _dots(axes: Axes, rows: Mapping[str, Mapping[str, Any]], key: str) -> None:
    found = [(place, row) for place, row in enumerate(rows.values()) if key in row]
    errors = [row.get(key + _ERROR, 0.0) for _, row in found]
    places, values = [place for place, _ in found], [row[key] for _, row in found]
    axes.errorbar(values, places, xerr=errors, fmt="o", ms=4, capsize=2, label="measured")
    of_paper = [
        (row["published"][key], place)
        for place, row in enumerate(rows.values())
        if key in row.get("published", {})
    ]
    if of_paper:
        axes.plot(*zip(*of_paper, strict=True), "D", ms=5, mfc="none", color="k", label="published")
