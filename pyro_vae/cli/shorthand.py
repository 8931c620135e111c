"""The flags ``--kl-warmup``, ``--beta`` and ``--free-bits``, which stand for an objective."""

from __future__ import annotations

from typing import Any

from pyro_vae.cli.components import Component
from pyro_vae.cli.user_files import public_path
from pyro_vae.inference.regularized import BetaVAE, FreeBits
from pyro_vae.inference.schedules import Linear, Scheduled

__all__ = ["settle_objective"]


def settle_objective(config: Any) -> None:
    """Set the objective that the flags stand for, and the flags to None; in place.

    A stored configuration then has the objective alone.

    Args:
        config: The values of the options.

    Raises:
        ValueError: An objective is given beside them, two exclude each other, or a value is out of
            range.
    """
    flags = ("kl_warmup", "beta", "free_bits")
    values = {f"--{flag.replace('_', '-')}": getattr(config, flag, None) for flag in flags}
    given = {flag: value for flag, value in values.items() if value is not None}
    if not given:
        return
    _check(given, config.objective)
    if "--free-bits" in given:
        config.objective = _component(FreeBits, nats=given["--free-bits"])
    else:
        weight = _weight(given.get("--kl-warmup"), given.get("--beta", 1.0))
        config.objective = _component(BetaVAE, beta=weight)
    for flag in flags:
        setattr(config, flag, None)


def _check(given: dict[str, float], objective: Any) -> None:
    first, value = next(iter(given.items()))
    if objective is not None:
        raise ValueError(
            f"{first} {value:g}: it stands for an objective, and --objective {objective.name} is "
            "another; "
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
    return _component(Scheduled, schedule=_component(Linear, start=0.0, end=beta, until=warmup))


def _component(part: type, **arguments: Any) -> Component:
    return Component(public_path(part), arguments)
