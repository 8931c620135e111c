"""Encode a nested state as JSON and tensors, and decode it without running code.

What JSON lacks is an object of one key that starts with "$"; dicts that could be mistaken for one,
or whose keys are not all strings, are such an object themselves:

* ``{"$tensor": name}``: the tensor of that name;
* ``{"$complex": name}``: a complex128 tensor, kept as pairs of float64;
* ``{"$tuple": [...]}``: a tuple;
* ``{"$dict": [[key, value], ...]}``: a dict with keys that are integers or start with "$";
* ``{"$float": "nan"}``: NaN, and with "inf" or "-inf" an infinity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

__all__ = ["decode", "encode"]

_MAX_DEPTH = 64
_MAX_INTEGER_BITS = 4096  # Python refuses to print or parse integers of over 4,300 digits


def encode(state: dict[Any, Any]) -> tuple[bytes, dict[str, Tensor]]:
    """Return ``state`` as JSON text, and its tensors by the names that stand for them there.

    A tensor's name is its place, as in ``"/model/weight"``. The tensors returned are copies:
    contiguous, on the CPU, none sharing memory with another.

    Raises:
        ValueError: ``state`` holds what cannot be written, or is nested too deeply; the message
            says at which place.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encoded(state, "", tensors)
    return json.dumps(tree, allow_nan=False).encode(), tensors


def decode(text: bytes, tensors: dict[str, Tensor]) -> Any:
    """Return what `encode` took; of a text that it did not write, whatever that stands for.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: no such text, or one that needs other
            tensors.
    """
    return _decoded(json.loads(text, parse_constant=_refuse_constant), tensors)


def _encoded(value: Any, where: str, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"cannot save the state: nested over {_MAX_DEPTH} deep at {where!r}")
    if isinstance(value, Tensor):
        return _encode_tensor(value, where, tensors)
    if isinstance(value, dict):
        return _encode_dict(value, where, tensors, depth)
    if isinstance(value, (list, tuple)):
        items = [_encoded(v, f"{where}/{i}", tensors, depth + 1) for i, v in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    too_long = _is_too_long(value)
    if too_long or not (value is None or isinstance(value, (str, int, float))):
        what = (
            f"an integer over {_MAX_INTEGER_BITS} bits" if too_long else f"a {type(value).__name__}"
        )
        raise ValueError(
            f"cannot save {what} at {where!r} of the state: use dicts, lists, tuples, strings, "
            "numbers, None and tensors"
        )
    return value


def _is_too_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS


def _encode_dict(value: dict[Any, Any], where: str, tensors: dict[str, Tensor], depth: int) -> Any:
    wrong = [key for key in value if not isinstance(key, (str, int)) or _is_too_long(key)]
    if wrong:
        raise ValueError(
            f"cannot save a key of type {type(wrong[0]).__name__} at {where!r} of the state: "
            f"use strings and integers up to {_MAX_INTEGER_BITS} bits"
        )
    pairs = [(k, _encoded(v, f"{where}/{k}", tensors, depth + 1)) for k, v in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(pairs)
    return {"$dict": pairs}


def _encode_tensor(value: Tensor, where: str, tensors: dict[str, Tensor]) -> Any:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise ValueError(f"cannot save the tensor at {where!r}: only dense ones with values")
    # Safetensors takes neither shared nor strided memory.
    copy = value.detach().cpu().resolve_conj().resolve_neg()
    copy = copy.clone(memory_format=torch.contiguous_format)
    name = where.encode(errors="replace").decode()
    while name in tensors:
        name += "'"
    is_double_complex = copy.dtype == torch.complex128  # the one type that safetensors lacks
    tensors[name] = torch.view_as_real(copy) if is_double_complex else copy
    return {"$complex" if is_double_complex else "$tensor": name}


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _decoded(item, tensors) for key, item in value.items()}
    ((tag, content),) = value.items()
    return _DECODERS[tag](content, tensors)


def _decode_pairs(pairs: Any, tensors: dict[str, Tensor]) -> dict[str | int, Any]:
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise TypeError("a key is neither str nor int")
    return {key: _decoded(item, tensors) for key, item in pairs}


_DECODERS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "$dict": _decode_pairs,
    "$tuple": lambda items, tensors: tuple(_decoded(item, tensors) for item in items),
    "$float": lambda text, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "$tensor": lambda name, tensors: tensors[name].clone(),
    "$complex": lambda name, tensors: torch.view_as_complex(tensors[name].clone()),
}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
