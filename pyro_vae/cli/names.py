"""What the command line offers by name, from what classes state of themselves.

Names come from the packages' own ``__all__`` and from each class's ``synonyms``; its ``roles``
say which options offer it.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import pyro.infer
from pyro.infer import ELBO
from torch import nn

import pyro_vae.components
import pyro_vae.components.networks
import pyro_vae.engine.observations
import pyro_vae.engine.turns
import pyro_vae.inference.schedules
import pyro_vae.laboratory
import pyro_vae.models
from pyro_vae.components import Family

__all__ = [
    "ROLES",
    "by_data",
    "hints",
    "known_as",
    "nearest",
    "offered",
    "plain",
    "serves",
    "stated",
    "summary",
]

# Pyro's own docstrings do not begin with what a one-line list needs.
_ELBOS = {
    "Trace_ELBO": "The ELBO, with every term sampled.",
    "TraceMeanField_ELBO": "The ELBO, with its KL terms in closed form where they have one.",
    "TraceGraph_ELBO": "The ELBO, with baselines for latents that cannot be reparameterised.",
    "TraceEnum_ELBO": "The ELBO, with latents that are marked for it summed out.",
    "RenyiELBO": "Renyi's bound of order alpha; of order 0 the importance weighted bound.",
}

ROLES: dict[str, tuple[ModuleType, type]] = {
    "model": (pyro_vae.models, nn.Module),
    "prior": (pyro_vae.components, Family),
    "likelihood": (pyro_vae.components, Family),
    "posterior": (pyro_vae.components, Family),
    "network": (pyro_vae.components.networks, nn.Module),
    "encoder": (pyro_vae.components.networks, nn.Module),
    "decoder": (pyro_vae.components.networks, nn.Module),
    "objective": (pyro_vae.inference, ELBO),
    "observation": (pyro_vae.engine.observations, pyro_vae.engine.observations.Observation),
    "schedule": (pyro_vae.inference.schedules, pyro_vae.inference.Schedule),
    "turns": (pyro_vae.laboratory, pyro_vae.engine.turns.Turns),
    "corruption": (pyro_vae.components, pyro_vae.components.Noise),
}


def stated(part: type, fact: str, default: Any) -> Any:
    """Return what a class states of itself; what its bases state is theirs alone."""
    return vars(part).get(fact, default)


def offered(option: str) -> dict[str, type]:
    """Return the classes that an option offers by name, from the public names of its package."""
    package, base = ROLES[option]
    found = {name: getattr(package, name) for name in package.__all__}
    if option == "objective":
        found = {name: getattr(pyro.infer, name) for name in _ELBOS} | found
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and not inspect.isabstract(value)
        and serves(value, option)
    }


def serves(part: type, option: str) -> bool:
    """Whether a class states that it has a role, or states nothing about its roles."""
    return option in stated(part, "roles", (option,))


def known_as(name: str, option: str, others: Iterable[str] = ()) -> str | None:
    """Return the name of the class that a person means by one; None if it is not clear.

    Case, hyphens and underscores do not count where only one name is meant. A synonym of several
    classes is that of the one which is most at home in the role.

    Args:
        name: As typed.
        option: The role, such as "prior".
        others: Further names, such as of Pyro's distributions.
    """
    parts = offered(option) if option in ROLES else {}
    if name in parts or name in others:
        return name
    meant = [
        other for other in dict.fromkeys([*parts, *others]) if plain(other) == plain(name)
    ] or sorted(_of_synonym(name, parts), key=lambda other: _distance(parts[other], option))[:1]
    return meant[0] if len(meant) == 1 else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean ...? "`` with the known name most like ``name``, or nothing."""
    spelt = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), list(spelt), n=1, cutoff=0.4)
    return f"did you mean {spelt[near[0]]}? " if near else ""


def hints(option: str) -> dict[str, str]:
    """Return what to take for names that are nearly a class's, by the name in plain letters."""
    return {
        plain(name): sentence
        for part in offered(option).values()
        for name, sentence in stated(part, "near", {}).items()
    }


def plain(name: str) -> str:
    """Return a name without case, hyphens and underscores."""
    return re.sub(r"[-_ ]", "", name).casefold()


def _of_synonym(name: str, parts: dict[str, type]) -> Iterator[str]:
    for other, part in parts.items():
        if plain(name) in map(plain, stated(part, "synonyms", ())):
            yield other


def _distance(part: type, option: str) -> int:
    roles = stated(part, "roles", (option,))
    return int(roles.index(option))


def by_data() -> dict[str, dict[str, type]]:
    """Return the likelihoods by the kind of data that they are of."""
    found: dict[str, dict[str, type]] = {}
    for name, part in offered("likelihood").items():
        found.setdefault(stated(part, "data", Family.data), {})[name] = part
    return found


def summary(part: type) -> str:
    """Return a class's one line: the first sentence of its docstring, without formulas."""
    if part.__name__ in _ELBOS:
        return _ELBOS[part.__name__]
    paragraph = " ".join((inspect.getdoc(part) or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[\w)\]])\.(?: |$)", paragraph)[0].replace("``", "").replace("`", "")
    return re.sub(r",? :math:.*$", "", sentence).rstrip(".:") + "."
