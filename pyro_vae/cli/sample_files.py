"""Samples of a run as files: arrays by observed site, texts, and pictures of images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.cli.pictures import ending
from pyro_vae.files import replace_file
from pyro_vae.report import plots

__all__ = ["as_lines", "check_suffix", "num_texts", "write", "write_texts"]

_DRAWN = 64
_SHOWN = 10


def check_suffix(out: Path | None, *, others: tuple[str, ...] = ()) -> None:
    """Refuse a file of another kind before anything is drawn.

    Args:
        out: The file.
        others: Endings of files of texts or tables, where the samples are such.

    Raises:
        ValueError: If it ends in neither .npy nor .npz, nor in one of those.
    """
    if out is not None and out.suffix not in (".npy", ".npz", *others):
        as_texts = f", or in {', '.join(others)}, as the data are" if others else ""
        raise ValueError(
            f"--out {out}: samples are written as a .npy file; end it in .npy, or in .npz where "
            f"the program observes several sites{as_texts}"
        )


def write_texts(texts: list[str], out: Path) -> Iterator[str]:
    """Write texts, one a line; yield the first ones, and a line on the file."""
    replace_file(out, as_lines(texts))
    yield from texts[:_SHOWN]
    yield f"wrote {out}: {num_texts(texts)}"


def num_texts(texts: list[str]) -> str:
    """Return how many texts there are, in words."""
    return f"{len(texts):,} text{'s' * (len(texts) != 1)}"


def as_lines(texts: list[str]) -> bytes:
    r"""Return texts one a line, in UTF-8; line ends inside them are written out, as ``\n``."""
    lines = [text.replace("\n", "\\n").replace("\r", "\\r") for text in texts]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def write(found: Any, out: Path | None, folder: Path) -> Iterator[str]:
    """Write samples, and pictures of those that are images; yield a line on each file.

    Args:
        found: Of the one observed site, ``[N, *event_shape]``, or by site.
        out: The file; ``samples.npy`` in the run's folder unless given, ``.npz`` of several sites.
        folder: The run's folder.

    Raises:
        ValueError: If the file is to hold one array, and there are several.
    """
    suffix = ".npz" if isinstance(found, dict) else ".npy"
    out = out or folder / f"samples{suffix}"
    if out.suffix != suffix:
        sites = f"several sites ({', '.join(found)})" if isinstance(found, dict) else "one site"
        raise ValueError(f"--out {out}: the program observes {sites}; end the file in {suffix}")
    buffer = io.BytesIO()
    if isinstance(found, dict):
        np.savez(buffer, **{name: values.numpy() for name, values in found.items()})
    else:
        np.save(buffer, found.numpy(), allow_pickle=False)
    replace_file(out, buffer.getvalue())
    for name, values in (found if isinstance(found, dict) else {"": found}).items():
        of = f": {name}" if name else ""
        yield f"wrote {out}{of}: {tuple(values.shape)}, {values.min():g} to {values.max():g}"
        if values.dim() == 4 and values.shape[1] in (1, 3, 4):
            yield f"wrote {_picture(values, out, name)}"


def _picture(values: Tensor, out: Path, name: str) -> Path:
    path = out.with_name(f"{out.stem}{ending(name)}.png")
    plots.save(plots.image_grid(values[:_DRAWN], title="Samples from the prior"), path)
    return path
