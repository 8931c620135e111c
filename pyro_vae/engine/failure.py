"""Explain a step that was refused: the parameter, site and line of a number that is not finite."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.inference.program import Program, unchanged_parameters
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import SiteTerms, site_terms

__all__ = ["not_finite", "rehearsing", "why_gradient", "why_loss"]

# A step's noise is gone when the host looks: others are drawn until one of them shows the fault.
_TRIES = 20
_NAMED = 4
_LIBRARIES = ("/torch/", "/pyro/", "/pyro_vae/", "/contextlib.py", "/functools.py")
_WHERE_IT_BEGINS = re.compile(r'File "([^"]+)", line (\d+)')


def not_finite(gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Return 1 for each gradient that holds a number that is not finite, ``[P]``, on the device.

    Args:
        gradients: Of P parameters; None counts as finite.
        like: Of the type and device of the result.
    """
    zero = torch.zeros_like(like)
    # One pass over each: a sum is finite where all its terms are, short of an overflow.
    sums = [zero if g is None else _sum(g) for g in gradients]
    return torch.stack([(~s.isfinite()).to(like.dtype) for s in sums]) if sums else zero[None][:0]


def _sum(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values().sum() if gradient.is_sparse else gradient.sum()


@contextmanager
def rehearsing(program: Program, beside: Sequence[torch.nn.Module] = ()) -> Iterator[None]:
    """Run as a step does, with gradients, and leave buffers, parameters and noise as they were.

    Args:
        program: Whose step it is.
        beside: Modules of the objective.
    """
    modules = [*program.reachable, *beside]
    before = copy.deepcopy([module.state_dict() for module in modules])
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
            pyro.validation_enabled(False),
            program.running(),
            unchanged_parameters(program.reachable),
        ):
            yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state, strict=False)


def why_loss(
    program: Program, layout: Layout, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]
) -> tuple[str, str]:
    """Say where a loss stops being finite, and what helps.

    Args:
        program: At the weights that gave the loss.
        layout: Of the program.
        parameters: Its parameters by name.
        batch: The data of the step.
    """
    if not all(bool(torch.isfinite(arg).all()) for arg in batch if arg.is_floating_point()):
        return "at the data", "repair or leave out these rows"
    broken = [name for name, p in parameters.items() if not bool(p.isfinite().all())]
    if broken:
        named = f"since the parameter {broken[0]!r}{_more(broken)} is not finite"
        return named, "give it finite values at the start, or lower the learning rate"
    with rehearsing(program), torch.no_grad():
        for _ in range(_TRIES):
            culprits = _sites(site_terms(program, layout, *batch, bounded=False))
            if culprits:
                return f"at {' and '.join(culprits)}", ""
    return "in the objective", ""


def _sites(terms: SiteTerms) -> list[str]:
    """Return the sites where a number stops being finite, not those that are given it."""
    for name, value in terms.values.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return [f"site {name!r} (the guide draws {_first_bad(value):g})"]
    return [
        f"site {name!r} (log {letter})"
        for letter, table in (("p", terms.log_p), ("q", terms.log_q))
        for name, log_density in table.items()
        if not bool(log_density.isfinite().all())
    ]


def _first_bad(value: Tensor) -> float:
    return float(value[~value.isfinite()][0])


def why_gradient(
    program: Program,
    layout: Layout,
    parameters: Mapping[str, Tensor],
    bad: Sequence[str],
    batch: tuple[Tensor, ...],
) -> str:
    """Say which parameters have no finite gradient, by which site and line, and what helps.

    Args:
        program: At the weights whose gradient it is.
        layout: Of the program.
        parameters: Its parameters by name.
        bad: The names of those whose gradient is not finite.
        batch: The data of the step.
    """
    named = ", ".join(map(repr, bad[:_NAMED])) + (f", ... ({len(bad)})" if bad[_NAMED:] else "")
    where = _where_gradient(program, layout, parameters, bad, batch)
    return (
        f"the gradient of {named} is not{where}: torch.where and clamp do not keep back the "
        "gradient of what they leave out; bound the argument of a root, a logarithm or a division "
        "before it is taken"
    )


def _where_gradient(
    program: Program,
    layout: Layout,
    parameters: Mapping[str, Tensor],
    bad: Sequence[str],
    batch: tuple[Tensor, ...],
) -> str:
    held = [parameters[name] for name in bad if parameters[name].requires_grad]
    with rehearsing(program):
        for _ in range(_TRIES):
            with _origin() as line, torch.autograd.set_detect_anomaly(True, check_nan=False):
                culprit = _culprit(site_terms(program, layout, *batch, bounded=False), held)
            if culprit is not None:
                where, total = culprit
                return f", at {where}{line(total, held)}"
    return ""


def _culprit(terms: SiteTerms, held: list[Tensor]) -> tuple[str, Tensor] | None:
    tables = [
        *(("drawn by the guide", {name: value}) for name, value in terms.values.items()),
        ("log q", terms.log_q),
        ("log p", terms.log_p),
    ]
    for part, table in tables:
        for name, number in table.items():
            if number.requires_grad and not _finite_slope(number.sum(), held):
                return f"site {name!r} ({part})", number.sum()
    return None


def _finite_slope(total: Tensor, held: list[Tensor]) -> bool:
    slopes = torch.autograd.grad(total, held, allow_unused=True, retain_graph=True)
    return all(bool(slope.isfinite().all()) for slope in slopes if slope is not None)


@contextmanager
def _origin() -> Iterator[Any]:
    """Give a function that says in which operation and line a gradient first is NaN."""

    def line(total: Tensor, held: list[Tensor]) -> str:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                with torch.autograd.set_detect_anomaly(True):
                    torch.autograd.grad(total, held, allow_unused=True, retain_graph=True)
            except RuntimeError as error:
                return _said(str(error), " ".join(str(warning.message) for warning in warned))
        return ""

    yield line


def _said(error: str, warned: str) -> str:
    operation = re.search(r"'(\w+?)Backward\d*'", error)
    places = [
        f"{Path(file).name}:{number}"
        for file, number in _WHERE_IT_BEGINS.findall(warned)
        if not any(part in file for part in _LIBRARIES)
    ]
    named = f", by {operation[1].lower()}" if operation else ""
    return f"{named} ({places[-1]})" if places else named


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
