"""Texts as rows of symbols: split, numbered by a vocabulary of the training rows, padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from pyro_vae.datasets.containers import Given
from pyro_vae.datasets.molecules import faults
from pyro_vae.datasets.splitters import Molecules, Splitter, splitter
from pyro_vae.datasets.values import is_missing
from pyro_vae.datasets.vocabulary import Vocabulary, shown
from pyro_vae.memory import refuse_beyond
from pyro_vae.wording import option, warn

__all__ = ["Reading", "no_texts", "numbered", "sound", "texts_of"]

_MANY_UNKNOWN = 0.1  # of the symbols
_FAR_LONGER = 4  # than all but a few rows
_FEW = 0.02
_MANY_STEPS = 2_000
_NUM_SHOWN, _SHOWN = 3, 60  # rows that are no molecules, and characters of each
_AS_LIST = ("tolist", "to_list", "to_pylist")

_OF_BAGS = ("min_documents", "stop_words", "words")

Symbols = list[list[str]]


@dataclass(frozen=True)
class Reading:
    """How text becomes rows of symbols.

    The vocabulary is that of the training rows. All rows are padded to one length.

    Args:
        symbols: What a symbol is: "characters"; "words", by frequency, those that occur once being
            unknown; "smiles" or "selfies" of molecules, which are given as SMILES; the path of a
            ``tokenizer.json`` of the library ``tokenizers``; or a ``Splitter``. Unless given, those
            of SMILES where a file is one of molecules, and otherwise characters. "bag" counts words
            instead, whatever their order.
        max_symbols: How many symbols are kept, the most frequent ones; by default all characters,
            and 10,000 words.
        max_length: The length of all rows in symbols; by default that of the longest.
        longer: What becomes of longer rows: they are refused, cut, or left out.
        column: The column of a ``.csv`` or ``.tsv`` file that holds the texts.
        label_column: The one that holds their labels; none unless given.
        vocabulary: In place of one of the training rows, such as that of a run.
        min_documents: Of a bag: in how many training documents a word has to be; by default in one.
        stop_words: Of a bag: "english" leaves out words such as "the", those of scikit-learn.
        words: Of a bag: what is counted, in place of the words of the training rows.
        invalid: What becomes of rows that are to be molecules and are none: they are refused, left
            out with a warning, or kept as symbols.

    Raises:
        ValueError: If a number is less than one.
    """

    symbols: str | Path | Splitter | None = None
    max_symbols: int | None = None
    max_length: int | None = None
    longer: Literal["refuse", "cut", "drop"] = "refuse"
    column: str | None = None
    label_column: str | None = None
    vocabulary: Vocabulary | None = None
    min_documents: int | None = None
    stop_words: Literal["english"] | None = None
    words: tuple[str, ...] | None = None
    invalid: Literal["refuse", "drop", "keep"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("max_symbols", "max_length", "min_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{option(name, value)}: give 1 or more")
        if self.longer != "refuse" and self.max_length is None:
            raise ValueError(
                f"{option('longer', self.longer)}: {option('max_length')} says longer than what"
            )
        if self.longer not in ("refuse", "cut", "drop"):
            raise ValueError(f"{option('longer', self.longer)}: it is refuse, cut or drop")
        if self.invalid not in ("refuse", "drop", "keep"):
            raise ValueError(f"{option('invalid', self.invalid)}: it is refuse, drop or keep")
        unused = next((name for name in _OF_BAGS if getattr(self, name) is not None), None)
        if unused is not None and not self.is_bag:
            bag = option("symbols", "bag", python="symbols='bag'")
            raise ValueError(
                f"{option(unused)}: it is of bags of words, which {bag} makes of texts"
            )

    @property
    def is_bag(self) -> bool:
        """Whether the words of a text are counted."""
        return self.symbols == "bag"

    def splitter(self) -> Splitter:
        """Return what splits text into symbols."""
        if self.vocabulary is not None:
            return self.vocabulary.splitter
        return splitter("characters" if self.symbols is None else self.symbols)


def no_texts(reading: Reading, name: str) -> ValueError:
    """Return the error of data that hold no texts where a reading of texts is given."""
    if reading.vocabulary is not None:
        return ValueError(f"{name} holds no texts, and the run was trained on texts")
    asked = next((f.name for f in fields(Reading) if getattr(reading, f.name) != f.default), "text")
    given = option("text_column" if asked == "column" else asked, python=f"text={reading}")
    return ValueError(f"{given}: {name} holds no texts; leave it out")


def texts_of(values: Any, where: str) -> list[str] | None:
    """Return rows that are texts as a list; None if they are none.

    Raises:
        ValueError: If some rows are text, and others are not.
    """
    rows = values if isinstance(values, (list, tuple)) else _column(values)
    first = None if rows is None else next((row for row in rows if not is_missing(row)), None)
    if rows is None or not isinstance(first, (str, bytes)):
        return None
    wrong = next((n for n, row in enumerate(rows) if not isinstance(row, str)), None)
    if wrong is not None:
        kind = "missing" if is_missing(rows[wrong]) else f"a {type(rows[wrong]).__name__}"
        cure = "decode it" if isinstance(rows[wrong], bytes) else "leave it out"
        raise ValueError(f"{where}: row {wrong} is {kind}, the first is text; {cure}")
    return [str(row) for row in rows]


def _column(values: Any) -> list[Any] | None:
    """Return a column of text or objects as a list, of numpy, pandas, polars or Arrow."""
    kind = getattr(getattr(values, "dtype", None), "kind", "O")
    if getattr(values, "ndim", 1) != 1 or kind not in "OUST" or isinstance(values, Tensor):
        return None
    method = next((name for name in _AS_LIST if hasattr(values, name)), None)
    found = None if method is None else getattr(values, method)()
    return found if isinstance(found, list) else None


def numbered(
    parts: Mapping[str, Given],
    name: str,
    reading: Reading,
    training: Callable[[int], Sequence[int]],
) -> tuple[dict[str, Given], Vocabulary]:
    """Return parts with the numbers of their texts' symbols as x, and the vocabulary.

    Args:
        parts: By what messages call them, those for training first; x is a list of texts.
        name: What messages call all of them.
        reading: How they are read.
        training: Which of so many rows of the first part are for training.

    Raises:
        ValueError: If a text is too long, or holds what no vocabulary has.
    """
    parts = {where: sound(given, where, reading) for where, given in parts.items()}
    split = {where: _split(given["x"], where, reading.splitter()) for where, given in parts.items()}
    if not any(chain.from_iterable(split.values())):
        raise ValueError(f"{name}: all texts are empty; give some that are not")
    kind = reading.splitter().kind
    length = _length([*chain.from_iterable(split.values())], name, kind, reading)
    parts = dict(parts)
    for where, rows in split.items():
        parts[where], split[where] = _shortened(parts[where], rows, length, reading.longer)
        if not split[where]:
            raise ValueError(f"{where}: no text has {length} {kind} or fewer; raise the length")
    first = next(iter(split.values()))
    vocabulary = reading.vocabulary or _of_training(
        [first[row] for row in training(len(first))], name, reading
    )
    _tell_of_unknown([*chain.from_iterable(split.values())], name, vocabulary)
    size = sum(map(len, split.values())) * length * vocabulary.dtype.itemsize
    cure = f"{option('max_length')} with {option('longer', 'cut')} makes shorter ones"
    refuse_beyond(size, f"{name}: all rows with {length:,} {kind} each", cure)
    numbers = {where: vocabulary.numbered(rows, length) for where, rows in split.items()}
    return {where: {**given, "x": numbers[where]} for where, given in parts.items()}, vocabulary


def sound(
    given: Given, where: str, reading: Reading, place: Callable[[int], str] = "row {}".format
) -> Given:
    """Return fields without the rows that are to be molecules and are none; all of other texts.

    Args:
        given: x is a list of texts.
        where: What messages call it.
        reading: How they are read, and what becomes of such rows.
        place: What messages call a row.

    Raises:
        ValueError: If there are some, and they are to be refused; if no other is left; if longer
            ones are to be cut, which leaves no molecule.
    """
    if reading.is_bag or reading.invalid == "keep":
        return given
    splitter, texts = reading.splitter(), given["x"]
    if not isinstance(splitter, Molecules):
        return given
    if reading.longer == "cut":
        cut, drop = (option("longer", way, python=f"longer={way!r}") for way in ("cut", "drop"))
        raise ValueError(f"{cut}: a piece of SMILES is no molecule; {drop} leaves longer ones out")
    wrong = faults(texts, splitter)
    if not wrong:
        return given
    shown = [f"{place(row)}, {texts[row][:_SHOWN]!r} ({why})" for row, why in wrong.items()]
    others = f", and {len(wrong) - _NUM_SHOWN:,} others" if len(wrong) > _NUM_SHOWN else ""
    said = (
        f"{where}: {len(wrong):,} of {len(texts):,} rows are no molecules: "
        f"{'; '.join(shown[:_NUM_SHOWN])}{others}"
    )
    if reading.invalid == "refuse" or len(wrong) == len(texts):
        drop = option("invalid", "drop", python="invalid='drop'")
        cure = "give SMILES" if len(wrong) == len(texts) else f"{drop} leaves them out"
        raise ValueError(f"{said}; {cure}")
    warn(f"{said}; they are left out")
    kept = [row for row in range(len(texts)) if row not in wrong]
    return {name: None if values is None else _rows(values, kept) for name, values in given.items()}


def _split(texts: Sequence[str], where: str, splitter: Splitter) -> Symbols:
    found = []
    for row, text in enumerate(texts):
        try:
            found.append(splitter.split(text))
        except ValueError as error:
            raise ValueError(f"{where}: row {row}: {error}") from None
    return found


def _length(rows: Symbols, name: str, kind: str, reading: Reading) -> int:
    """Return the length of all rows; refuses longer ones where they are to be refused."""
    lengths = np.array([len(row) for row in rows])
    most, longest = reading.max_length, int(lengths.max())
    if most is None:
        _tell_of_long(lengths, name, kind)
        return longest
    num_longer = int((lengths > most).sum())
    if num_longer and reading.longer == "refuse":
        cut, drop = (option("longer", way, python=f"longer={way!r}") for way in ("cut", "drop"))
        raise ValueError(
            f"{name}: {num_longer:,} of {len(rows):,} texts are longer than {most:,} {kind}, the "
            f"longest has {longest:,}: {cut} cuts them, {drop} leaves them out"
        )
    return most


def _tell_of_long(lengths: np.ndarray, name: str, kind: str) -> None:
    usual, longest = int(np.quantile(lengths, 1 - _FEW)), int(lengths.max())
    cut = option("longer", "cut", python="longer='cut'")
    if longest > _FAR_LONGER * max(usual, 10):
        warn(
            f"{name}: all rows are padded to {longest:,} {kind}, though {1 - _FEW:.0%} have "
            f"{usual:,} or fewer: {option('max_length', usual)} with {cut} is faster"
        )
    elif longest > _MANY_STEPS:
        bag = option("symbols", "bag", python="symbols='bag'")
        warn(
            f"{name}: texts of up to {longest:,} {kind}, for which networks take as many steps: "
            f"{option('max_length', 200)} with {cut} is faster, {bag} counts words instead"
        )


def _shortened(given: Given, rows: Symbols, length: int, longer: str) -> tuple[Given, Symbols]:
    """Return fields and symbols with longer rows cut or left out."""
    if longer == "cut":
        return given, [row[:length] for row in rows]
    kept = [place for place, row in enumerate(rows) if len(row) <= length]
    if len(kept) == len(rows):
        return given, rows
    found = {name: values if values is None else _rows(values, kept)
             for name, values in given.items()}  # fmt: skip
    return found, [rows[place] for place in kept]


def _rows(values: Any, kept: list[int]) -> Any:
    if isinstance(values, (list, tuple)):
        return [values[place] for place in kept]
    return np.asarray(values)[kept]


def _of_training(rows: Symbols, name: str, reading: Reading) -> Vocabulary:
    try:
        return Vocabulary.of(rows, reading.splitter(), most=reading.max_symbols)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _tell_of_unknown(rows: Symbols, name: str, vocabulary: Vocabulary) -> None:
    """Warn of symbols that training never meets, and of many unknown ones; refuse the unreadable.

    Raises:
        ValueError: If there are such symbols, and nothing stands for them.
    """
    strange = vocabulary.outside(rows)
    if not strange:
        return
    kind, known = vocabulary.splitter.kind, len(vocabulary) - 1
    num_rows = sum(any(symbol in strange for symbol in row) for row in rows)
    held = f"{name}: {num_rows:,} of {len(rows):,} texts hold {shown(strange)}"
    if vocabulary.unknown is None:
        raise ValueError(f"{held}, not among the {known:,} {kind} of the training rows")
    unknown = vocabulary.symbols[vocabulary.unknown]
    share = strange.total() / sum(map(len, rows))
    if vocabulary.is_whole:
        warn(f"{held}, which no training row has: read as {unknown!r}, which is never trained")
    elif share > _MANY_UNKNOWN:
        warn(f"{held}: {share:.0%} of all {kind} are not among the {known:,} known: {unknown!r}")
