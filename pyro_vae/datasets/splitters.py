"""How text is split into symbols, and how symbols are put together again."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = [
    "NAMED",
    "Characters",
    "Molecules",
    "Selfies",
    "Smiles",
    "Splitter",
    "Tokenizer",
    "Words",
    "splitter",
    "splitter_of",
]


class Splitter:
    """An interface: text into symbols and back.

    What is split and put together again is the same symbols: ``split(join(split(t))) == split(t)``.

    Attributes:
        name: What a command line and a stored vocabulary call it.
        kind: What its symbols are, in the plural, for people.
        unknown: What stands for a symbol that a vocabulary has not, as text; None where such text
            is refused.
        fewest: How often a symbol has to occur to be in a vocabulary of no stated size.
        most: How many symbols a vocabulary of no stated size has at most.
        own: The symbols of every vocabulary of no stated size, where they are settled beforehand;
            None where they are those that occur.
    """

    name: str
    kind: str
    unknown: str | None = None
    fewest: int = 1
    most: int | None = None
    own: tuple[str, ...] | None = None

    def split(self, text: str) -> list[str]:
        """Return the symbols of a text, in order.

        Raises:
            ValueError: If it is no such text, with the reason.
        """
        raise NotImplementedError

    def join(self, symbols: Sequence[str]) -> str:
        """Return the text of some symbols."""
        raise NotImplementedError

    @property
    def definition(self) -> str | None:
        """What it takes besides its name to make it again; None: nothing."""
        return None


@dataclass(frozen=True)
class Characters(Splitter):
    """Each character (code point of Unicode) is a symbol; nothing is lost."""

    name = "characters"
    kind = "characters"
    unknown = "\N{REPLACEMENT CHARACTER}"

    def split(self, text: str) -> list[str]:
        """Return the characters."""
        return list(text)

    def join(self, symbols: Sequence[str]) -> str:
        """Return them one after the other."""
        return "".join(symbols)


_ANGLES = re.compile(r"(<\w+>)")  # such as the <unk> of published corpora
_CLOSING, _OPENING = frozenset(".,;:!?%)]}…"), frozenset("([{")


@dataclass(frozen=True)
class Words(Splitter):
    """What stands between blanks, and each mark of punctuation around it, is a symbol.

    Text is put together with one blank between symbols, but none before ``.,;:!?%)]}`` and none
    behind ``([{``. How many blanks there were is lost.
    """

    name = "words"
    kind = "words"
    unknown = "<unk>"
    fewest = 2
    most = 10_000

    def split(self, text: str) -> list[str]:
        """Return words and marks: ``"(Don't!)"`` is ``( Don't ! )``."""
        pieces = [piece for chunk in text.split() for piece in _ANGLES.split(chunk) if piece]
        return [
            symbol
            for piece in pieces
            for symbol in ([piece] if _ANGLES.fullmatch(piece) else _peeled(piece))
        ]

    def join(self, symbols: Sequence[str]) -> str:
        """Return words with blanks between them where people write them."""
        return "".join(_spaced(symbols))


def _peeled(piece: str) -> list[str]:
    """Return what stands between marks of punctuation, and each of them."""
    begin, end = 0, len(piece)
    while begin < end and _is_mark(piece[begin]):
        begin += 1
    while end > begin and _is_mark(piece[end - 1]):
        end -= 1
    core = [piece[begin:end]] if begin < end else []
    return [*piece[:begin], *core, *piece[end:]]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _spaced(symbols: Sequence[str]) -> Iterator[str]:
    before = None
    for symbol in symbols:
        if before is not None and symbol not in _CLOSING and before not in _OPENING:
            yield " "
        yield symbol
        before = symbol


_MISSING = "the package tokenizers, which reads it, is not installed: pip install 'pyro-vae[text]'"


@dataclass(frozen=True)
class Tokenizer(Splitter):
    """The symbols of a tokenizer of the library ``tokenizers``.

    Args:
        text: Of its ``tokenizer.json``.

    Raises:
        ValueError: If it is no definition of a tokenizer, or the library is not installed.
    """

    text: str

    name = "tokenizer"
    kind = "symbols of a tokenizer"

    def __post_init__(self) -> None:
        _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError:
            raise ValueError(_MISSING) from None
        try:
            found = tokenizers.Tokenizer.from_str(self.text)
        except Exception as error:  # the library raises plain exceptions
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"no tokenizer of the library tokenizers ({reason}); name {', '.join(NAMED)}, or a "
                "file that Tokenizer.save wrote"
            ) from None
        found.no_padding()
        found.no_truncation()
        return found

    @cached_property
    def unknown(self) -> str:  # type: ignore[override]
        """The tokenizer's own, or ``<unk>`` where it has none."""
        known = json.loads(self.text).get("model", {}).get("unk_token")
        return known if isinstance(known, str) and known else "<unk>"

    @cached_property
    def own(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tokenizer's symbols, in its order."""
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        return tuple(sorted(filter(None, known), key=known.__getitem__))

    @property
    def definition(self) -> str:
        """The text of its ``tokenizer.json``."""
        return self.text

    def split(self, text: str) -> list[str]:
        """Return the tokens, without those that mark the beginning and the end."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).tokens)

    def join(self, symbols: Sequence[str]) -> str:
        """Return the text that the tokenizer makes of its tokens."""
        numbers = [self._tokenizer.token_to_id(symbol) for symbol in symbols]
        text, known = "", []
        for symbol, number in zip(symbols, numbers, strict=True):
            if number is not None and symbol != self.unknown:
                known.append(number)
                continue
            text, known = text + self._text(known) + symbol, []
        return text + self._text(known)

    def _text(self, numbers: list[int]) -> str:
        return str(self._tokenizer.decode(numbers, skip_special_tokens=False)) if numbers else ""


class Molecules(Splitter):
    """An interface: molecules into symbols and back; as text, they are SMILES."""


_ATOM = (
    r"\[\d*(?:[A-Z][a-z]?|[a-z][a-z]?|\*)(?:@@?(?:[A-Z]{2}\d+)?)?(?:H\d*)?(?:[+-]+\d*)?(?::\d+)?\]"
)
_SMILES = re.compile(
    rf"{_ATOM}|Br|Cl|[BCFINOPSbcnops*]|%\d\d|%\(\d+\)|[-=#$:~/\\.()0-9]|\N{{REPLACEMENT CHARACTER}}"
)
_RING = re.compile(r"\d|%\d\d|%\(\d+\)")


@dataclass(frozen=True)
class Smiles(Molecules):
    """The symbols of SMILES: atoms (``Cl``, ``[nH+]``, ``[C@@H]``), bonds, branches, ring bonds.

    Nothing is lost. What is no SMILES is refused, but whether it is a molecule is not looked at.

    References:
        SMILES, a chemical language and information system (Weininger, 1988)
    """

    name = "smiles"
    kind = "symbols of SMILES"
    unknown = "\N{REPLACEMENT CHARACTER}"

    def split(self, text: str) -> list[str]:
        """Return the symbols: ``Clc1cc[nH]c1`` is ``Cl c 1 c c [nH] c 1``."""
        symbols, place = [], 0
        for match in _SMILES.finditer(text):
            if match.start() > place:
                break
            symbols.append(match[0])
            place = match.end()
        if place < len(text):
            raise ValueError(f"no SMILES: {text[place : place + 8]!r} at character {place}")
        _check_closed(symbols)
        return symbols

    def join(self, symbols: Sequence[str]) -> str:
        """Return them one after the other."""
        return "".join(symbols)


def _check_closed(symbols: Sequence[str]) -> None:
    """Refuse branches and rings that are opened and not closed, or the other way round."""
    depth = 0
    for symbol in symbols:
        depth += (symbol == "(") - (symbol == ")")
        if depth < 0:
            break
    if depth:
        raise ValueError(f"no SMILES: a branch is not {'opened' if depth < 0 else 'closed'}")
    rings = Counter(int(symbol.strip("%()")) for symbol in symbols if _RING.fullmatch(symbol))
    if (open_ := next((ring for ring, ends in rings.items() if ends % 2), None)) is not None:
        raise ValueError(f"no SMILES: ring bond {open_} is not closed")


_NO_SELFIES = "the package selfies is not installed: pip install 'pyro-vae[molecules]'"


@dataclass(frozen=True)
class Selfies(Molecules):
    """The symbols of SELFIES, by the package ``selfies``: each row is a molecule, or has no atom.

    Text goes in and comes out as SMILES: the same molecule, written in another way. The unknown
    symbol is the one that adds nothing to a molecule.

    Raises:
        ValueError: If the package is not installed.

    References:
        Self-referencing embedded strings (SELFIES): A 100% robust molecular string representation
        (Krenn, Hase, Nigam, Friederich & Aspuru-Guzik, 2020)
    """

    name = "selfies"
    kind = "symbols of SELFIES"
    unknown = "[nop]"

    def __post_init__(self) -> None:
        _ = self._package

    @cached_property
    def _package(self) -> Any:
        try:
            import selfies
        except ImportError:
            raise ValueError(f"symbols={self.name!r}: {_NO_SELFIES}") from None
        return selfies

    def split(self, text: str) -> list[str]:
        """Return the symbols: ``C=O`` is ``[C] [=O]``."""
        Smiles().split(text)
        try:
            return [*self._package.split_selfies(self._package.encoder(text))]
        except Exception as error:  # of the package's own, and what its parser stumbles over
            lines = [line for line in str(error).split("\n\t") if line and text not in line]
            said = " ".join(" ".join(lines).split())[:160] or type(error).__name__
            raise ValueError(f"not to be written as SELFIES: {said}") from None

    def join(self, symbols: Sequence[str]) -> str:
        """Return the SMILES of the molecule that the symbols stand for."""
        return str(self._package.decoder("".join(symbols)))


NAMED: dict[str, Callable[[], Splitter]] = {
    splitter.name: splitter for splitter in (Characters, Words, Smiles, Selfies)
}
"""By name; anything else is the file of a tokenizer."""


def splitter(given: str | Path | Splitter) -> Splitter:
    """Return what splits text: by name, or the tokenizer in a file.

    Raises:
        FileNotFoundError: If it is no name, and there is no such file.
        ValueError: If the file is no tokenizer, or a package is missing.
    """
    if isinstance(given, Splitter):
        return given
    if (known := NAMED.get(str(given))) is not None:
        return known()
    path, names = Path(given).expanduser(), ", ".join(NAMED)
    if not path.is_file():
        raise FileNotFoundError(
            f"symbols={str(given)!r}: neither {names} nor a file: name one of them, or the path of "
            "a tokenizer.json"
        )
    try:
        return Tokenizer(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def splitter_of(name: str, definition: str | None) -> Splitter:
    """Return what a stored vocabulary was made with.

    Raises:
        ValueError: If there is none of that name, or the definition is none.
    """
    if name == Tokenizer.name and definition is not None:
        return Tokenizer(definition)
    if name not in NAMED:
        raise ValueError(f"no symbols are called {name!r}: known are {', '.join(NAMED)}")
    return NAMED[name]()
