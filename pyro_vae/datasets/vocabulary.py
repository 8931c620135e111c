"""A vocabulary: the symbols that texts consist of, by number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pyro_vae.datasets.splitters import Splitter, splitter_of
from pyro_vae.memory import room

__all__ = ["PADDING", "Vocabulary", "shown"]

PADDING = 0
_SHOWN = 5


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of texts by number; number 0 is the padding, which ends and fills a row.

    Args:
        symbols: By number; that of the padding is the empty text.
        splitter: Makes symbols of text, and text of symbols.
        unknown: The number that stands for any other symbol; None where others are refused.
        is_whole: Whether no symbol of the training rows is left out, so that the unknown symbol
            is one that training never meets.

    Raises:
        ValueError: If a symbol has two numbers, or the padding is not the first.
    """

    symbols: tuple[str, ...]
    splitter: Splitter
    unknown: int | None = None
    is_whole: bool = True

    padding = PADDING

    def __post_init__(self) -> None:
        if len({*self.symbols}) < len(self.symbols) or self.symbols[:1] != ("",):
            raise ValueError("symbols: the first is '', the padding, and no two are the same")
        if self.unknown is not None and not 0 < self.unknown < len(self.symbols):
            raise ValueError(f"unknown={self.unknown}: it is the number of one of the symbols")

    @classmethod
    def of(
        cls, rows: Iterable[Sequence[str]], splitter: Splitter, *, most: int | None = None
    ) -> Vocabulary:
        """Return the vocabulary of some texts that are split, the most frequent symbols first.

        Args:
            rows: The symbols of each text.
            splitter: What has split them.
            most: How many symbols are kept at most, besides the padding and the unknown symbol;
                by default what the splitter says, whose own symbols are then all kept.

        Raises:
            ValueError: If no symbol is left.
        """
        if most is None and splitter.own is not None:
            symbols = ("", *splitter.own)
            known = splitter.unknown in splitter.own
            return cls(symbols, splitter, symbols.index(splitter.unknown) if known else None)
        counts = Counter(symbol for row in rows for symbol in row)
        counts.pop(splitter.unknown or "", None)
        fewest = splitter.fewest if most is None else 1
        found = sorted((s for s, n in counts.items() if n >= fewest), key=lambda s: (-counts[s], s))
        if not found:
            often = "at all" if fewest == 1 else f"{fewest} times"
            raise ValueError(
                f"none of {splitter.kind} occurs {often} in the training rows; give more text, or "
                "take characters"
            )
        kept = found[: splitter.most if most is None else most]
        unknown = [] if splitter.unknown is None else [splitter.unknown]
        number, is_whole = (1 if unknown else None), len(kept) == len(counts)
        return cls(("", *unknown, *kept), splitter, number, is_whole)

    def __len__(self) -> int:
        return len(self.symbols)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.splitter.kind})"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    def split(self, texts: Iterable[str]) -> list[list[str]]:
        """Return the symbols of each text."""
        return [self.splitter.split(text) for text in texts]

    def outside(self, rows: Iterable[Sequence[str]]) -> Counter[str]:
        """Return how often which symbols occur that have no number of their own."""
        known, unknown = self._numbers, self.splitter.unknown
        return Counter(s for row in rows for s in row if s not in known and s != unknown)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Return the numbers of the texts' symbols, ``[N, length]``, padded.

        Raises:
            ValueError: If a text is longer, or has a symbol that is not in the vocabulary while
                there is no unknown symbol.
        """
        return self.numbered(self.split(texts), length)

    def numbered(self, rows: Sequence[Sequence[str]], length: int) -> np.ndarray:
        """Return the numbers of symbols, ``[N, length]``; see ``encode``."""
        longer = [len(row) for row in rows if len(row) > length]
        if longer:
            raise ValueError(
                f"{len(longer):,} of {len(rows):,} texts are longer than {length} "
                f"{self.splitter.kind}, the longest has {max(longer):,}"
            )
        if self.unknown is None and (strange := self.outside(rows)):
            raise ValueError(f"{shown(strange)}: not among the {len(self) - 1} known symbols")
        found = room((len(rows), length), self.dtype)
        for place, row in enumerate(rows):
            numbers = [self._numbers.get(symbol, self.unknown) for symbol in row]
            found[place, : len(row)] = numbers
            found[place, len(row) :] = self.padding
        return found

    @property
    def dtype(self) -> np.dtype:
        """The smallest type that holds all numbers."""
        return np.dtype("u1" if len(self) <= 2**8 else "i2" if len(self) <= 2**15 else "i4")

    def decode(self, rows: Any) -> list[str]:
        """Return the texts of rows of numbers, ``[N, L]``, up to the first padding of each."""
        return [self._text(row) for row in np.asarray(rows).astype(np.int64).tolist()]

    def _text(self, row: list[int]) -> str:
        end = row.index(self.padding) if self.padding in row else len(row)
        return self.splitter.join([self.symbols[number] for number in row[:end]])

    def to_json(self) -> str:
        """Return it as text, from which ``from_json`` makes it again."""
        return json.dumps({
            "splitter": self.splitter.name, "definition": self.splitter.definition,
            "symbols": self.symbols, "unknown": self.unknown, "is_whole": self.is_whole,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Return the vocabulary that ``to_json`` wrote.

        Raises:
            ValueError: If it is none, or a package is missing that splits its text.
        """
        try:
            held = json.loads(text)
            splitter = splitter_of(held["splitter"], held["definition"])
            symbols = tuple(map(str, held["symbols"]))
            return cls(symbols, splitter, held["unknown"], bool(held["is_whole"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no vocabulary ({error!r})") from None


def shown(symbols: Counter[str]) -> str:
    """Return some symbols by name, the most frequent first: ``'é' and 3 others``."""
    first = [repr(symbol) for symbol, _ in symbols.most_common(_SHOWN)]
    others = len(symbols) - len(first)
    return ", ".join(first) + (f" and {others:,} others" if others else "")
