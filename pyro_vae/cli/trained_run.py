"""A trained run as an object: its program with its weights, and what it says of new data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae import datasets
from pyro_vae.arguments import at_the_door
from pyro_vae.cli.rows_of_tables import filled, refuse_missing, table_of
from pyro_vae.cli.runs import Run
from pyro_vae.cli.sentences import texts_of_rows
from pyro_vae.cli.trained import opened, run_parser
from pyro_vae.datasets import Data
from pyro_vae.datasets.arrays import unsplit
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.fitting import Fit
from pyro_vae.inference import Probe

__all__ = ["TrainedRun", "load"]

_CHUNK = 10_000
ByRow = Tensor | dict[str, Tensor]
"""Of the one site of a program ``[N, ...]``, or by the names of several."""
Generated = ByRow | list[str] | dict[str, list[Any]]
"""Rows as a program generates them, or as texts, or the columns of a table."""


@at_the_door
def load(
    run: Path | str, *, weights: str | None = None, device: str = "auto", model: str | None = None
) -> TrainedRun:
    """Open the folder of a run that ``pyro-vae train`` made; nothing in it is executed.

    Args:
        run: The run folder.
        weights: The "best" by validation, or the "last"; those that the run was asked for, unless
            given.
        device: "auto" takes CUDA, then Apple's MPS, then the CPU.
        model: File and class of the run's program, if it is one of your own: "my_file.py:MyVAE".

    Raises:
        FileNotFoundError: If there is no run in the folder, or its data are needed to rebuild its
            program and are not there any more.
        ValueError: If it is damaged, or of a program of your own that is not named.
    """
    words = [str(run), "--device", device]
    words += ["--weights", weights] if weights else []
    words += ["--model", model] if model else []
    parser = run_parser("load", "Open a trained run.")
    found, done, _, _ = opened(parser, words, needs_data=False)
    return TrainedRun(found, done, Path(run))


class TrainedRun:
    """A trained program and its data's description; ask it of new data in their own units.

    Rows are arrays as ``fit`` takes them, ``[N, *event_shape]``, with labels, covariates and other
    fields that the program takes by name. They are observed as in training, dequantised or
    binarised under a fixed seed; results are in the order of the rows, on the CPU.

    Attributes:
        program: An object with ``model`` and ``guide``, on its device, in evaluation mode.
        folder: Of the run.
        history: One record per epoch.
        results: What its report says, by name; empty if it was not evaluated.
        event_shape: The shape of one row.
        classes: The names of the classes; None without labels.
        vocabulary: Of a run of texts. Rows are then texts, or the numbers of their symbols, and
            what is generated is texts; None of other runs.
        table: Of a run of a table: names and kinds of its columns. Rows are then frames of pandas,
            polars or Arrow, dictionaries of columns, or numbers; and what is generated is a
            dictionary of columns, of which ``pandas.DataFrame`` makes a frame. None of others.
        words: Of a run of bags of words. Rows are then counts of these, or texts; None of others.
    """

    def __init__(self, run: Run, done: Fit, folder: Path) -> None:
        self._run, self.folder, self.history = run, folder, done.history
        self.program = run.program.eval()
        self.event_shape, self.classes = run.data.event_shape, run.data.classes
        self.vocabulary, self.words = run.data.vocabulary, run.data.words
        self.table = run.data.table
        path = folder / "results.json"
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __repr__(self) -> str:
        name = type(self.program).__name__
        return f"TrainedRun({name} on {self._run.data.name}, {self.event_shape}, {self.folder})"

    @property
    def observation(self) -> Any:
        """How stored rows become what the program sees."""
        return self._run.observation

    def encode(self, x: Any, **fields: Any) -> ByRow:
        """Return the posterior mean of each row's latents, ``[N, *latent_shape]``.

        Args:
            x: Rows, ``[N, *event_shape]``.
            fields: What else the program takes, by name: ``labels``, ``covariates``, ...

        Raises:
            ValueError: If the rows do not fit what the run was trained on.
        """
        return self.encoded(self.rows(x, **fields))

    def reconstruct(
        self, x: Any, *, stochastic: bool = False, seed: int = 0, **f: Any
    ) -> Generated:
        """Return the rows as the program sees them through their latents, ``[N, *event_shape]``.

        Args:
            x: Rows, ``[N, *event_shape]``.
            stochastic: Draw latents and rows instead of taking means, or of texts the likeliest
                symbols.
            seed: Of the draws.
            f: As of ``encode``.

        Raises:
            ValueError: As ``encode`` does.
        """
        found = self.reconstructed(self.rows(x, **f), stochastic=stochastic, seed=seed)
        return self._as_given(found)

    def decode(self, z: Any, **fields: Any) -> Generated:
        """Return E[x | z] for latents, ``[N, *event_shape]``, as the program observes them.

        Args:
            z: ``[N, *latent_shape]``, or such by the names of several latent sites.
            fields: As of ``encode``, one for each row of z.

        Raises:
            ValueError: If the program takes a field that is not given.
        """
        given = z if isinstance(z, Mapping) else {self._probe().layout.latents[0]: z}
        values = {name: torch.as_tensor(v).to(self._run.device) for name, v in given.items()}
        like = self._like(len(next(iter(values.values()))), fields)
        found = _on_cpu(evaluation.decode(self._run.typical_model, values, like))
        return self._as_given(found)

    def log_prob(
        self, x: Any, *, num_samples: int = 1000, seed: int = 0, **fields: Any
    ) -> evaluation.ImportanceEstimate:
        """Estimate log p(x) of each row in nats by importance sampling, ``.log_p`` of the result.

        Args:
            x: Rows, ``[N, *event_shape]``.
            num_samples: For each row.
            seed: Of the samples.
            fields: As of ``encode``.

        Raises:
            ValueError: As ``encode`` does, or if the guide draws points, which have no density.
        """
        return self.scored(self.rows(x, **fields), num_samples=num_samples, seed=seed)

    def sample(
        self,
        num: int,
        *,
        label: str | None = None,
        stochastic: bool = True,
        temperature: float = 1.0,
        nucleus: float = 1.0,
        seed: int = 0,
    ) -> Generated:
        """Draw rows from the model, z ~ p(z) and x ~ p(x | z), ``[num, *event_shape]``.

        Args:
            num: How many.
            label: The class to draw, by name or number, of a program that is given labels; all in
                turn unless given.
            stochastic: Draw x; otherwise it is E[x | z], or of texts the likeliest symbols.
            temperature: Of each symbol that is drawn; 1 as the model says, 0 the likeliest.
            nucleus: The probability of the likeliest symbols that are drawn from; 1: all.
            seed: Of the draws.

        Raises:
            ValueError: If a number is out of range, or x is not drawn symbol by symbol.
        """
        like = self._run.rows_like(label)
        model = self._run.drawing_model(temperature, nucleus, mean=not stochastic)
        drawn = evaluation.prior_samples(model, like, num, stochastic=stochastic, seed=seed)
        return self._as_given(_on_cpu(drawn))

    def impute(
        self, x: Any, *, stochastic: bool = False, seed: int = 0, **fields: Any
    ) -> dict[str, list[Any]]:
        """Return a table with its missing cells filled through the latents given the observed ones.

        z comes from q(z | the cells that are there), and missing cells from p(x | z): their means,
        and the likeliest categories, at the mean of z; or draws of both.

        Args:
            x: Rows of a table.
            stochastic: Draw.
            seed: Of the draws.
            fields: As of ``encode``.

        Raises:
            ValueError: As ``encode`` does, or if the run is of no table.
        """
        if self.table is None:
            raise ValueError(f"impute: {self.folder} is of no table with names of columns")
        rows = self.rows(x, **fields)
        found = self.reconstructed(rows, stochastic=stochastic, seed=seed)
        return filled(rows.x, found, self.table)

    def _as_given(self, found: ByRow) -> Generated:
        """Return generated rows as those that are given: texts, or the columns of a table."""
        if self.table is not None:
            return table_of(found, self.table)
        return found if self.vocabulary is None else texts_of_rows(found, self.vocabulary)

    # Rows ------------------------------------------------------------------------------------

    def rows(self, x: Any, **fields: Any) -> Data:
        """Return rows as the run's program reads them: checked, in their order, not observed."""
        record, own = self._run.record, self._run.data
        text = None
        if self.vocabulary is not None:
            length = self.event_shape[0]
            text = datasets.Reading(vocabulary=self.vocabulary, max_length=length)
        if self.words is not None:
            text = datasets.Reading(symbols="bag", words=self.words)
        levels = own.levels if self.words is None else None  # of a count, there is no largest
        table = None if self.table is None else datasets.TableReading(table=self.table)
        if isinstance(x, Mapping) and "x" in x and self.table is None:  # fields by name
            fields = {**x, **fields}
            x = fields.pop("x")
        if isinstance(x, str):
            raise ValueError(f"x={x[:40]!r}: give a list of texts, [{x[:40]!r}]")
        whole = unsplit(
            {"x": x, **fields}, name="x", levels=levels, text=text, table=table,
            axes=datasets.as_images if len(self.event_shape) == 3 else datasets.as_given,
        )  # fmt: skip
        rows = (whole if record is None else record.converted(whole)).test
        refuse_missing(self._run, rows)
        return rows

    def observed(self, rows: Data) -> Data:
        """Return rows as the program sees them, on its device."""
        seed, device = OBSERVATION_SEED, self._run.device
        return observe_once(rows, self.observation, seed=seed, device=device)

    def encoded(self, rows: Data) -> ByRow:
        """Return the posterior means of rows; see ``encode``."""
        model, guide = self.program.model, self.program.guide
        return self._by_chunks(rows, lambda few: evaluation.posterior_means(model, guide, few))

    def reconstructed(self, rows: Data, *, stochastic: bool, seed: int) -> ByRow:
        """Return rows through their latents; see ``reconstruct``."""
        guide = self.program.guide
        model = self.program.model if stochastic else self._run.typical_model
        return self._by_chunks(
            rows,
            lambda few: evaluation.reconstruct(model, guide, few, stochastic=stochastic, seed=seed),
        )

    def scored(self, rows: Data, *, num_samples: int, seed: int) -> evaluation.ImportanceEstimate:
        """Return log p(x) of rows; see ``log_prob``."""
        observed = self.observed(rows)
        program = Probe(self._run.bound, *self._run.arguments(observed[:3]))
        return evaluation.importance_sampling(program, observed, num_samples=num_samples, seed=seed)

    def _by_chunks(self, rows: Data, function: Callable[[Data], Any]) -> ByRow:
        found = [_on_cpu(function(self.observed(few))) for few in _chunks(rows)]
        first = found[0]
        if isinstance(first, Tensor):
            return torch.cat(found)
        joined = {name: torch.cat([part[name] for part in found]) for name in first}
        return joined if len(joined) > 1 else next(iter(joined.values()))

    def _probe(self) -> Probe:
        few = self._run.test_rows()[:3]
        return Probe(self._run.bound, *self._run.arguments(few))

    def _like(self, num: int, fields: dict[str, Any]) -> Data:
        """Return rows for their shape alone, beside the fields that are given."""
        few = self._run.test_rows()
        like = few[torch.arange(num, device=few.x.device) % len(few)]
        needed = [name for name in self._run.bound.fields[1:] if name not in (*fields, "labelled")]
        if needed:
            raise ValueError(
                f"the program takes {', '.join(needed)} beside its latents: give one for each row, "
                f"decode(z, {needed[0]}=...)"
            )
        if not fields:
            return like
        given = self.rows(like.x.cpu(), **fields)
        kept = {n: v.to(self._run.device) for n, v in given.fields.items() if n != "x"}
        return like.replace(**kept)


def _chunks(rows: Data) -> Iterator[Data]:
    for begin in range(0, len(rows), _CHUNK):
        yield rows[begin : begin + _CHUNK]


def _on_cpu(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {name: values.cpu() for name, values in found.items()}
    return found.cpu()
