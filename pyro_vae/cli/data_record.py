"""The record of a run's data: where they are, their hash, and what sampling needs without them.

It is stored in the run's folder as a checkpoint is: written whole, read only if its hashes agree.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.cli.data_loading import load_data
from pyro_vae.datasets import Data, Dataset, Table, Vocabulary
from pyro_vae.datasets.data import in_order
from pyro_vae.engine import checkpoint
from pyro_vae.files import show
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.memory import touched

__all__ = [
    "DataRecord",
    "data_to_resume",
    "read",
    "rebuilds_alike",
    "record_of",
    "row_hashes",
    "write",
]

_FOLDER = "data"
_FEW_ROWS = 16
_STARTING_ROWS = 10_000
_MOST_HASHES = 2**21
_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class DataRecord:
    """What a run keeps of the data that it was trained on.

    Attributes:
        name: What they are called.
        source: Where they were: ``--data`` as it was given, as an absolute path, and relative to
            the run's folder; None for the last two where the data have a name.
        fingerprint: Of all rows, in their order.
        levels: As of a ``Dataset``.
        classes: As of a ``Dataset``.
        vocabulary: As of a ``Dataset``.
        words: As of a ``Dataset``.
        table: As of a ``Dataset``.
        num_training: The number of training rows.
        few: A few training rows and their labels, which stand in for all where the values of the
            data do not matter.
        labels: The classes that occur in training; None without labels.
        hashes: Of training rows, sorted, the smallest of them where there are millions.
        opens_alone: Whether a program built on the few rows is that of the run, once it has the
            run's weights.
        options: The text of the run's options, against which its file of them is held; empty in
            runs of earlier versions.
    """

    name: str
    source: dict[str, str | None]
    fingerprint: str
    levels: int | None
    classes: tuple[str, ...] | None
    num_training: int
    few: Data
    labels: Tensor | None
    hashes: np.ndarray
    opens_alone: bool = False
    options: str = ""
    vocabulary: Vocabulary | None = None
    words: tuple[str, ...] | None = None
    table: Table | None = None

    def stand_in(self) -> Dataset:
        """Return the few rows, repeated, in the place of the data."""
        num_rows = min(self.num_training, _STARTING_ROWS)
        train = self.few[torch.arange(num_rows) % len(self.few)]
        return Dataset(
            self.name, train, self.few, self.few, self.levels, self.classes, self.vocabulary,
            self.words, self.table,
        )  # fmt: skip

    def num_trained_on(self, x: Tensor) -> int:
        """Return how many rows, ``[N, *event_shape]``, were among the training rows."""
        found = row_hashes(x)
        whole = len(self.hashes) == self.num_training
        seen = found if whole else found[found <= self.hashes[-1]]
        share = np.isin(seen, self.hashes).mean() if len(seen) else 0.0
        return round(float(share) * len(found))

    def load(self, folder: Path, given: str | None, config: Any) -> Dataset:
        """Load the data of the run in ``folder``, from where they are now.

        Raises:
            FileNotFoundError: If they are nowhere.
        """
        length = self.few.x.shape[1] if self.vocabulary is not None else 1
        place = self.place(folder, given)
        # Columns of a file of counts are held against the run's, and not called by its words.
        words = self.words if getattr(config, "symbols", None) == "bag" else None
        return load_data(
            place, config, vocabulary=self.vocabulary, length=length, words=words, table=self.table
        )

    def place(self, folder: Path, given: str | None) -> str:
        """Return where the data of the run in ``folder`` are now.

        Raises:
            FileNotFoundError: If they are nowhere.
        """
        if given is not None:
            return given
        absolute, relative = self.source["absolute"], self.source["relative"]
        if absolute is None or relative is None:
            return str(self.source["given"])
        for path in (Path(absolute), folder.resolve() / relative):
            if path.exists():
                return str(path)
        raise FileNotFoundError(
            f"{show(folder)} was trained on {show(Path(absolute))}, which is not there any more: "
            "say with --data where the data are now"
        )

    def difference_from(self, data: Dataset, folder: Path) -> str | None:
        """Say how data differ from those that the run was trained on; None if they do not."""
        if data.fingerprint() == self.fingerprint:
            return None
        said = f"{data.name} holds other data than {show(folder)} was trained on"
        if data.event_shape != tuple(self.few.x.shape[1:]):
            return said
        seen = self.num_trained_on(data.test.x)
        return f"{said}: of its {len(data.test):,} test rows, {seen:,} were trained on"

    def evaluation_data(
        self, options: Any, config: Any, *, needs_data: bool, compares: bool = True
    ) -> Dataset:
        """Load the data that a run is evaluated on, compared with those that it was trained on.

        Args:
            options: Of the command: ``run``, ``data`` and, where it has it, ``all``.
            config: Of the run.
            needs_data: Whether a few rows will not do.
            compares: Whether to say how other data differ.

        Raises:
            ValueError: If the data are others and ``--data`` does not name them.
        """
        if not needs_data and self.opens_alone and options.data is None:
            return self.stand_in()
        data = self.load(options.run, options.data, config)
        said, takes_all = self.difference_from(data, options.run), getattr(options, "all", False)
        if said is None and takes_all:
            raise ValueError("--all evaluates all rows of other data: name them with --data")
        if said is None:
            return data
        if options.data is None:
            raise ValueError(f"{said}; name them with --data to take them nevertheless")
        data = self.converted(data)
        if takes_all:
            data = all_as_test(data)
            said = f"{said}; of all {len(data.test):,} rows, {self.num_trained_on(data.test.x):,}"
        if compares:
            warnings.warn(said, stacklevel=2)
        return data

    def converted(self, data: Dataset) -> Dataset:
        """Return other data as the run's program reads them: its levels, its class numbers.

        Raises:
            ValueError: If they have another shape, values beyond the levels, or unknown classes.
        """
        shape = tuple(self.few.x.shape[1:])
        if data.event_shape != shape:
            raise ValueError(
                f"--data: {data.name} holds data of the shape {data.event_shape}, and the run was "
                f"trained on data of the shape {shape}"
            )
        is_bag = self.words is not None  # of which a count has no upper end
        levels = data.levels if is_bag else self.levels
        if self.levels is not None and (data.levels is None or data.levels > (levels or 0)):
            found = "real numbers" if data.levels is None else f"values up to {data.levels}"
            raise ValueError(
                f"--data: {data.name} holds {found}, and the run was trained on whole numbers from "
                f"0 to {self.levels}"
            )
        self._check_words(data)
        same = replace(data, levels=levels, vocabulary=self.vocabulary, words=self.words,
                       table=self.table)  # fmt: skip
        return self._renumbered(same)

    def _check_words(self, data: Dataset) -> None:
        ours, theirs = self.words or (), data.words or ()
        pairs = enumerate(zip(ours, theirs, strict=False))
        other = next((n for n, (one, two) in pairs if one != two), None)
        if other is not None:
            raise ValueError(
                f"--data: column {other} of {data.name} counts {theirs[other]!r}, and that of the "
                f"run {ours[other]!r}: count the run's words, in their order"
            )

    def _renumbered(self, data: Dataset) -> Dataset:
        if data.classes is None or self.classes is None or data.classes == self.classes:
            return data
        unknown = [name for name in data.classes if name not in self.classes]
        if unknown:
            raise ValueError(
                f"--data: {data.name} has the class {unknown[0]!r}, and the run was trained on the "
                f"classes {', '.join(self.classes[:20])}"
            )
        numbers = torch.tensor([*(self.classes.index(name) for name in data.classes), -1])
        # The last of these is that of rows without a label, which have -1.
        found = data.map(lambda part: part.replace(labels=numbers[part.labels]))
        return replace(found, classes=self.classes)

    def labels_to_sample(self, chosen: str | None) -> Tensor | None:
        """Return the labels to sample: those chosen, by name or number, or all in turn.

        Raises:
            ValueError: If there is no such class, or there are no labels.
        """
        if chosen is None or self.labels is None:
            if chosen is not None:
                raise ValueError(f"--label {chosen}: the run was trained on data without labels")
            return self.labels
        names = self.classes or tuple(map(str, range(1 + int(self.labels.max()))))
        words = [chosen] if chosen in names else chosen.split(",")
        unknown = [word for word in words if word not in names]
        if unknown:
            raise ValueError(
                f"--label {unknown[0]}: the run's classes are {', '.join(names[:20])}"
                + ("..." if len(names) > 20 else "")
            )
        return torch.tensor([names.index(word) for word in words])


def record_of(data: Dataset, given: str, folder: Path, options: str) -> DataRecord:
    """Return what a run in ``folder`` is to keep of its data, which ``--data`` names ``given``."""
    path = Path(given)
    source = {"given": given, "absolute": None, "relative": None}
    if path.is_absolute():
        source |= {"absolute": given, "relative": os.path.relpath(given, folder.resolve())}
    train = data.train
    labels = None if train.labels is None else train.labels.unique()
    labels = None if labels is None else labels[labels >= 0][:_STARTING_ROWS]
    hashes = np.sort(row_hashes(train.x))[:_MOST_HASHES]
    return DataRecord(
        data.name, source, data.fingerprint(), data.levels, data.classes, len(train),
        _few(train), labels, hashes, options=options, vocabulary=data.vocabulary, words=data.words,
        table=data.table,
    )  # fmt: skip


def _few(train: Data) -> Data:
    """Return a few rows, one with a missing value among them if the first ones have any."""
    rows = list(range(min(_FEW_ROWS, len(train))))
    if train.x.is_floating_point():
        holes = train.x[:_STARTING_ROWS].isnan().flatten(1).any(1).nonzero().flatten()
        rows[-1] = int(holes[0]) if len(holes) else rows[-1]
    few = train[torch.tensor(rows)]
    return Data(**few.fields)


def data_to_resume(folder: Path, given: str | None, config: Any) -> Dataset:
    """Load the data of a run that is resumed in ``folder``.

    Args:
        folder: Of the run.
        given: ``--data``, if it was given anew.
        config: Of the run.

    Raises:
        ValueError: If they are not those that it was trained on.
    """
    record = read(folder)
    if record is None:
        return load_data(config.data, config)
    data = record.load(folder, given, config)
    if (said := record.difference_from(data, folder)) is not None:
        raise ValueError(f"{said}; a run goes on with its own data alone: restore them")
    return data


def rebuilds_alike(program: Any, rebuilt: Any, few: Data) -> bool:
    """Tell whether a program that was built on the few rows is the same under the same weights.

    Args:
        program: Built on the data.
        rebuilt: Built on the few rows; it takes the weights over.
        few: The few rows as they are observed, on the program's device.
    """
    try:
        rebuilt.load_state_dict(program.state_dict())
        one, other = (_terms(each, few) for each in (program, rebuilt))
    except (RuntimeError, IndexError):  # rows that do not fit are refused before training
        return False
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one
    )


def _terms(program: Any, few: Data) -> dict[str, Tensor]:
    # Values outside the support, and missing ones, are refused before training, not here.
    bound = Program(program.model, program.guide).on(few.names)
    terms = Probe(bound, *few.tensors(bound.fields)).terms
    tables: Mapping[str, Mapping[str, Tensor]] = {"p": terms.log_p, "q": terms.log_q}
    return {f"{kind} {name}": t for kind, table in tables.items() for name, t in table.items()}


def row_hashes(x: Tensor) -> np.ndarray:
    """Return a hash of each row, ``[N]`` int64, of its numbers alone, whatever their type.

    Multilinear: sum over j of c_j b_j modulo 2^64 for the bits b_j of the numbers as float64.
    """
    width = max(1, x[0].numel())
    factors = np.random.RandomState(0).randint(0, 2**63, width, dtype=np.int64) * 2 + 1
    found = np.empty(len(x), np.int64)
    step = max(1, _CHUNK_NUMBERS // width)
    for begin in range(0, len(x), step):
        numbers = x[begin : begin + step].reshape(-1, width).double().cpu().numpy() + 0.0
        bits = np.where(np.isnan(numbers), np.nan, numbers).view(np.int64)
        # The upper bits of a float hold nearly all that tells whole numbers apart.
        found[begin : begin + step] = ((bits ^ (bits >> 32)) * factors).sum(1)
        touched(x[begin : begin + step].nbytes)
    return found


# On disk ------------------------------------------------------------------------------------------


def write(record: DataRecord, folder: Path) -> None:
    """Store what a run keeps of its data in the run's folder."""
    state = {
        **{name: value for name, value in vars(record).items() if name != "few"},
        "classes": None if record.classes is None else list(record.classes),
        "few": dict(record.few.fields),
        "vocabulary": None if record.vocabulary is None else record.vocabulary.to_json(),
        "words": None if record.words is None else list(record.words),
        "table": None if record.table is None else record.table.to_json(),
        "hashes": torch.from_numpy(record.hashes),
    }
    checkpoint.save(folder / _FOLDER, state, step=0)


def read(folder: Path) -> DataRecord | None:
    """Return what a run kept of its data; None if it is of a version that kept nothing.

    Raises:
        CheckpointError: If it is damaged.
    """
    path = checkpoint.latest(folder / _FOLDER)
    if path is None:
        return None
    state = checkpoint.load(path)
    try:
        classes = None if state["classes"] is None else tuple(map(str, state["classes"]))
        symbols, words = state.get("vocabulary"), state.get("words")  # earlier versions had none
        columns = state.get("table")
        return DataRecord(
            **{
                **state,
                "classes": classes,
                "vocabulary": None if symbols is None else Vocabulary.from_json(symbols),
                "words": None if words is None else tuple(words),
                "table": None if columns is None else Table.from_json(columns),
                "few": Data(**state["few"]),
                "hashes": state["hashes"].numpy(),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"{show(path)} does not hold what a run keeps of its data ({error}): take the folder "
            "data from a copy of the run"
        ) from error


def all_as_test(data: Dataset) -> Dataset:
    """Return data of which all rows are for testing; none of their labels trains a probe."""
    test = in_order(data)
    return replace(data, train=data.train.replace(labels=None), test=test)
