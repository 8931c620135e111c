"""Explain errors in a user's program: which layer, which input, which line.

An operation of torch says what it wanted of two matrices. The frames that it was called from know
more: the site, the line of the user's file, and the layer with what was handed to it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import shown

__all__ = ["ProgramError", "cause_of", "explaining", "is_machinery", "place", "reason_of"]


class ProgramError(ValueError):
    """A model or guide that breaks the convention; the message says which line to change."""


_CURES = (
    (r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)",
     "it takes {1} numbers, not {0}: make its size fit"),
    (r"same dtype|scalar type|[Ii]nput type .* type|dtype mismatch|but got (Double|Float|Long|Int)",
     "data and weights differ in their type of numbers: .float() of both, or .double(), makes them "
     "the same"),
    (r"same device|is on (cpu|cuda|mps)", "move data and program to one device, with .to(device)"),
    (r"index out of range|out of bounds|Class values must be|device-side assert",
     "a symbol or label is beyond what is there: count from 0, pad with 0, and make "
     "num_categories, num_symbols or num_classes larger than the largest"),
    (r"running_mean should contain (\d+) elements not (\d+)",
     "it takes {1} numbers, not {0}: make its size fit"),
    (r"'(?!tuple|list|dict|NoneType|function|Tensor|int|float)\w+' object has no attribute '(\w+)'",
     "check the spelling of {0!r}, or set it in __init__"),
    (r"object is not callable|unsupported operand|has no attribute|not subscriptable",
     "look at what the modules of the program return: one tensor, or a distribution"),
    (r"instances of Number, torch.Tensor", "hand tensors to it: torch.as_tensor makes them"),
    (r"missing \d+ required positional arguments?: '(\w+)'",
     "it takes {0} beside x: give it after x, as in elbo(program, x, {0})"),
    (r"Multiple sample sites named", "give every site and plate a name of its own"),
    (r"NVIDIA driver|compiled with CUDA", "take the device of what is there, as in x.device"),
    (r"more than 1 value per channel", "give batches of 2 rows or more"),
    (r"Shape mismatch inside plate",
     "size the plate by len(x), the rows of a batch (where it stands for more data, "
     "pyro.plate('data', num_data, subsample_size=len(x))), and declare the dimensions of one "
     "datum by .to_event"),
    (r"satisfy the constraint|within the support",
     "keep the parameters of a distribution within their bounds, as softplus keeps a scale"),
    (r"size|shape|dimension|channels|expected .*input", "make the shapes fit"),
)  # fmt: skip

# Of what torch says of a wrong parameter, without all of its values.
_CONSTRAINT = re.compile(
    r"Expected parameter (\w+) \(.*?\) of distribution (\w+)\(.*\) (to satisfy the constraint "
    r"[\w.]+(?:\(.*?\))?), but found invalid values.*"
)


@contextmanager
def explaining(what: str, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Say in our words what goes wrong in a program; what is said in them already stays.

    Args:
        what: Which cannot be done, such as "the program cannot be run".
        modules: Of the program, in which layers are named.

    Raises:
        ProgramError: In place of an error of torch, Pyro or the user's program.
    """
    try:
        yield
    except Exception as error:  # the user's program, Pyro and torch may raise anything
        if _is_ours(error) or _is_out_of_memory(error):
            raise
        cause = cause_of(error)
        if isinstance(cause, ProgramError):
            raise cause from None
        raise ProgramError(f"{what}: {reason_of(error, modules)}") from error


def reason_of(error: BaseException, modules: Sequence[nn.Module]) -> str:
    """Say on one line what went wrong, at which site, in which line of the program and layer."""
    error = cause_of(error)
    site = line = layer = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        if name == "pyro.primitives" and "name" in frame.f_locals:
            site = f"at site {frame.f_locals['name']!r} "
        elif not (is_machinery(frame) or name.startswith("pyro_vae.")):
            line = f"({place(frame, number)}) "
        layer = _layer(frame, modules) or layer
    said = _CONSTRAINT.sub(r"the \1 of a \2 \3", " ".join(str(error).split()))
    if _is_ours(error):
        return f"{site}{line}{said}"
    cure = _cure(said)
    quoted = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if not layer and "mat1 and mat2" in said:
        return f"{site}{line}the product there fails: {cure}"
    if not layer:
        return f"{site}{line}{quoted}" + (f"; {cure}" if cure else "")
    return f"{site}{line}{layer}" + (f": {cure}" if cure else f" ({quoted})")


def cause_of(error: BaseException) -> BaseException:
    """Return what was raised first: handlers of Pyro raise anew, with a table of shapes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised, and so worded, by this package."""
    frames = list(traceback.walk_tb(error.__traceback__))
    name = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    ours = name.partition(".")[0] == "pyro_vae"
    of_python = isinstance(error, AttributeError | IndexError | KeyError | RuntimeError)
    return ours and not of_python and "required positional argument" not in str(error)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _cure(said: str) -> str:
    for pattern, cure in _CURES:
        found = re.search(pattern, said)
        if found:
            return cure.format(*found.groups())
    return ""


def _layer(frame: Any, modules: Sequence[nn.Module]) -> str:
    """Name the module whose ``forward`` a frame is, and what it is given."""
    module = frame.f_locals.get("self")
    if frame.f_code.co_name != "forward" or not isinstance(module, nn.Module):
        return ""
    if frame.f_globals.get("__name__", "").startswith("pyro_vae.components.conditional"):
        return ""
    names = {id(each): name for root in modules for name, each in root.named_modules()}
    name = f" {names[id(module)]!r}" if names.get(id(module)) else ""
    code = frame.f_code
    given = [frame.f_locals.get(arg) for arg in code.co_varnames[1 : code.co_argcount]]
    shapes = " and ".join(_given(each) for each in given if isinstance(each, Tensor))
    own = f"{module}" if not list(module.children()) else type(module).__name__
    return f"the layer{name + ',' * bool(name)} {own} is given {shapes or 'no tensor'}"


def _given(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    said = f"{shown(tensor)} of {kind}"
    if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel():
        return said
    return f"{said} from {int(tensor.min())} to {int(tensor.max())}"


def is_machinery(frame: Any) -> bool:
    """Whether a frame runs code of ours or of a library, not of the user's."""
    package, _, rest = frame.f_globals.get("__name__", "").partition(".")
    ours = package == "pyro_vae" and not rest.startswith("models")
    return ours or package in ("pyro", "torch", "contextlib", "functools")


def place(frame: Any, number: int) -> str:
    """Return file and line."""
    return f"{Path(frame.f_code.co_filename).name}:{number}"
