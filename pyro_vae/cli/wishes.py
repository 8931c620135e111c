"""Shorthand flags (``--kl-warmup``, ``--beta``, ``--free-bits``), translated into an objective."""

from __future__ import annotations

import json
from typing import Any

from pyro_vae.inference.regularized import BetaVAE, FreeBits
from pyro_vae.inference.schedules import Linear, Scheduled

__all__ = ["objective_wished"]


def objective_wished(config: Any) -> list[str]:
    """Return the objective that ``--kl-warmup``, ``--beta`` and ``--free-bits`` stand for.

    With it come the flags without a value, so that a stored configuration has the objective alone.

    Args:
        config: The parsed options.

    Raises:
        ValueError: An objective is given beside them, two exclude each other, or a value is out of
            range.
    """
    flags = {
        "--kl-warmup": config.kl_warmup,
        "--beta": config.beta,
        "--free-bits": config.free_bits,
    }
    given = {flag: value for flag, value in flags.items() if value is not None}
    if not given:
        return []
    _check(given, config.objective)
    if "--free-bits" in given:
        part = _part(FreeBits, nats=given["--free-bits"])
    else:
        part = _part(BetaVAE, beta=_weight(given.get("--kl-warmup"), given.get("--beta", 1.0)))
    unset = [word for flag in given for word in (flag, "null")]
    return ["--objective", json.dumps(part), *unset]


def _check(given: dict[str, float], objective: Any) -> None:
    first, value = next(iter(given.items()))
    if objective is not None:
        name = objective.class_path.rpartition(".")[2]
        raise ValueError(
            f"{first} {value:g}: it stands for an objective, and --objective {name} is another; "
            "leave one out"
        )
    if "--free-bits" in given and len(given) > 1:
        raise ValueError(f"{first} {value:g}: not together with --free-bits; leave one out")
    for flag, value in given.items():
        if value < 0:
            raise ValueError(f"{flag} {value:g}: give 0 or more")
    if not 0 < given.get("--kl-warmup", 1.0) <= 1:
        raise ValueError(
            f"--kl-warmup {given['--kl-warmup']:g}: give a fraction of the run, above 0 and up to 1"
        )


def _weight(warmup: float | None, beta: float) -> Any:
    if warmup is None:
        return beta
    return _part(Scheduled, schedule=_part(Linear, start=0.0, end=beta, until=warmup))


def _part(part: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{part.__module__}.{part.__name__}", "init_args": arguments}
