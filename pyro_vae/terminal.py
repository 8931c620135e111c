"""Print to the terminal without control sequences; a closed pipe does not stop a run.

A reader may leave (``| head``), a terminal may vanish, a stream may be closed from the start; what
is printed then is lost, and the work goes on. Names of files, labels and messages of others may
hold escape sequences that move the cursor or rename the window: they are shown, not sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["Terminal", "occupy_descriptors", "on_one_line", "plain", "printing"]

# Control characters but for line ends and tabs; line separators; those that turn text around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# What a progress bar sends by itself: up a line, and back to its beginning.
_MOVES = re.compile("\n*(\x1b\\[A)*|\r*")


def plain(text: str) -> str:
    r"""Return text with its control characters written out: ``\x1b`` for an escape."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(text: object) -> str:
    r"""Return text with its line ends and tabs written out, too: for names of files and labels."""
    return re.sub(
        "[\t\n]", lambda found: found[0].encode("unicode_escape").decode(), plain(str(text))
    )


class Terminal:
    """A stream for text that cleans what is written to it, and never fails.

    Attributes:
        gone: Whether nobody can read it any more.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.gone = stream is None

    def write(self, text: str) -> int:
        """Write ``text`` without its control sequences, as far as anybody reads."""
        if not self.gone:
            # A progress bar begins its line with a carriage return.
            start = len(text) - len(text.lstrip("\r"))
            moves = _MOVES.fullmatch(text) is not None
            self._try("write", text if moves else text[:start] + plain(text[start:]))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if not self.gone:
            self._try("flush")

    def isatty(self) -> bool:
        """Tell whether a person sits before it."""
        try:
            return not self.gone and bool(self._stream.isatty())
        except (AttributeError, OSError, ValueError):
            return False

    def fileno(self) -> int:
        """Return its descriptor; OSError where it has none."""
        if self._stream is None:
            raise OSError("a closed stream has no descriptor")
        return int(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)

    def _try(self, method: str, *args: str) -> None:
        try:
            try:
                getattr(self._stream, method)(*args)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                args = tuple(a.encode(encoding, "backslashreplace").decode(encoding) for a in args)
                getattr(self._stream, method)(*args)
        except (OSError, ValueError, AttributeError):
            self.gone = True
            self._send_away()

    def _send_away(self) -> None:
        # What is in the stream's buffer would fail once more when the interpreter ends.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            handle = self.fileno()
            if handle in (1, 2):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, handle)
                os.close(nothing)


@contextlib.contextmanager
def printing() -> Iterator[tuple[Terminal, Terminal]]:
    """Let all that is printed go through a ``Terminal``: a context; gives stdout and stderr."""
    before = sys.stdout, sys.stderr
    streams = Terminal(before[0]), Terminal(before[1])
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def occupy_descriptors() -> None:
    """Open what is closed of stdin, stdout and stderr on nothing.

    The next file to be opened would take the free number, and get what libraries print.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
