"""Metrics: averaged on the device, written to a file and to TensorBoard.

`Mean` averages on the device, so that a training step never waits for its own loss. `MetricsFile`
appends records to a file of JSON lines, which `read` reads and `truncate` takes back to a step when
a run is resumed. `tensorboard` gives the same `append` for TensorBoard.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.files import append, explained, reason, replace_file, show

__all__ = ["Mean", "MetricsFile", "TensorBoard", "read", "tensorboard", "truncate"]


class MetricsFile:
    """A file of JSON lines, one record each, complete on disk after every `append`.

    A record maps names to numbers (of Python, numpy or a tensor of one element), strings, booleans
    or None. JSON has no NaN and no infinity: such a value is written as null and its name is listed
    under ``"nonfinite"``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write ``record`` as one line.

        Raises:
            OSError: the disk is full or read-only; records before this one are as they were.
        """
        line = _line(record)
        try:
            append(self.path, line)
        except OSError as error:
            message = f"cannot write {show(self.path)}: {reason(error)}"
            raise explained(error, message) from error

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file by these records, in one move.

        Raises:
            OSError: the disk is full or read-only; the file is as it was.
        """
        replace_file(self.path, b"".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(_finite(record), allow_nan=False) + "\n").encode()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a last line torn by a killed process is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another line is not a record; the message has its number.
    """
    return [record for _, record in _lines(path)]


def truncate(path: Path, *, step: int) -> None:
    """Drop the records after ``step`` and a torn last line, as a run does that resumes at ``step``.

    Records without a ``"step"`` stay, kept lines stay as they are byte for byte, and a file that
    does not exist is left so. The file is replaced in one move.

    Raises:
        OSError: the disk is full or read-only; the file is as it was.
        ValueError: a line other than the last is not a record.
    """
    if not Path(path).exists():
        return
    kept = [line for line, record in _lines(path) if record.get("step", step) <= step]
    replace_file(path, b"".join(line + b"\n" for line in kept))


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        name: value.item() if hasattr(value, "item") else value for name, value in record.items()
    }
    nonfinite = [
        name
        for name, value in plain.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if nonfinite:
        plain |= dict.fromkeys(nonfinite) | {"nonfinite": nonfinite}
    return plain


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    lines = Path(path).read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError("not a record")
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"line {number} of {str(path)!r} is not a JSON record: remove that line"
            ) from error
        records.append((line, record))
    return records


class Mean:
    r"""A running weighted mean, kept on the device of the values until it is asked for.

    $$ \frac{\sum_i w_i v_i}{\sum_i w_i} $$

    Sums are in float64, on MPS, which lacks it, in float32. `state` and `load` carry them over a
    resume to the same bits.
    """

    def __init__(self) -> None:
        self._total = torch.zeros((), dtype=torch.float64, device="cpu")
        self._weight = 0.0

    def add(self, value: Tensor | float, weight: float = 1.0) -> None:
        """Add ``value``, a number or a tensor of shape ``[]``, without waiting for the device.

        Raises:
            ValueError: ``value`` has another shape, or ``weight`` is negative or not finite.
        """
        if not 0 <= weight < math.inf:
            raise ValueError(f"a weight must be finite and not negative, got {weight}")
        if isinstance(value, Tensor):
            if value.shape != ():
                raise ValueError(f"a mean takes single numbers, got the shape {tuple(value.shape)}")
            dtype = torch.float32 if value.device.type == "mps" else torch.float64
            value = value.detach().to(dtype)
            self._total = self._total.to(dtype).to(value.device)
        self._total = self._total + value * weight
        self._weight += weight

    def compute(self) -> float:
        """Return the mean; this waits for the device.

        Raises:
            ValueError: nothing of positive weight was added.
        """
        if self._weight == 0:
            raise ValueError("the mean of nothing: add a value of positive weight first")
        return float(self._total) / self._weight

    def state(self) -> dict[str, Any]:
        """Return what `load` takes, ready for a checkpoint."""
        return {"total": self._total, "weight": self._weight}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._total, self._weight = state["total"], float(state["weight"])


class TensorBoard:
    """Writes the numbers of each record as TensorBoard scalars at the record's ``"step"``.

    Args:
        open_writer: Opens the file, at the first record, given ``purge_step``.
        resumed_at: See ``resume``.
    """

    def __init__(self, open_writer: Callable[..., Any], resumed_at: int | None = None) -> None:
        self._open_writer = open_writer
        self._purge_step: int | None = None
        self._opened: Any = None
        if resumed_at is not None:
            self.resume(resumed_at)

    def resume(self, step: int) -> None:
        """Hide the scalars after ``step``, of a run that was stopped and goes on there."""
        self.close()
        self._opened, self._purge_step = None, step + 1

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            self._opened = self._open_writer(purge_step=self._purge_step)
        return self._opened

    def append(self, record: Mapping[str, Any]) -> None:
        """Write every number of ``record``; booleans, strings and None are left out."""
        for name, value in record.items():
            number = value.item() if hasattr(value, "item") else value
            if isinstance(number, numbers.Real) and not isinstance(number, bool) and name != "step":
                self._writer.add_scalar(name, float(number), record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._opened is not None:
            self._opened.close()


def tensorboard(folder: Path, *, resumed_at: int | None = None) -> TensorBoard:
    """Return a writer of TensorBoard's event files in ``folder``.

    Scalars after the step ``resumed_at``, of a run that was stopped, are hidden.

    Raises:
        ValueError: the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "TensorBoard logging needs a package that is not installed: "
            "pip install 'pyro-vae[tensorboard]'"
        ) from error
    return TensorBoard(partial(SummaryWriter, str(folder)), resumed_at)
