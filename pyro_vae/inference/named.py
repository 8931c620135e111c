"""Check that the sites and modules that a handler names are in the program."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from pyro import poutine
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from torch import nn

__all__ = ["Named", "Partial", "checked_names"]


def checked_names(sites: Collection[str] | None) -> tuple[str, ...] | None:
    """Return the names of sites that a handler is for, None for all.

    Raises:
        TypeError: If it is one string, or not all are strings.
        ValueError: If there is none.
    """
    if sites is None:
        return None
    if isinstance(sites, str):
        raise TypeError(f'sites={sites!r}: give a list of the names of sites, sites=["{sites}"]')
    names = tuple(dict.fromkeys(sites))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"sites: {type(name).__name__} is no name of a site; give strings")
    if not names:
        raise ValueError("sites=[]: it is for no site; name some, or leave sites out for all")
    return names


class Named(Messenger):
    """Hold what handlers inside and around it are for against what the whole program has.

    Args:
        modules: Those of the program; a frozen one that is not among them has to be called.

    Raises:
        ValueError: On leaving, if a handler names a latent site that it does not meet.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self._parameters = {id(p) for module in modules for p in module.parameters()}
        self._latents: Counter[str] = Counter()
        self._observed: set[str] = set()
        self._met: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        self._frozen: dict[int, nn.Module] = {}
        self._hooks: list[Any] = []

    @staticmethod
    def around() -> list[Named]:
        """Return all that the running statement stands in."""
        return [handler for handler in runtime._PYRO_STACK if isinstance(handler, Named)]

    def note(self, handler: str, names: tuple[str, ...], site: str) -> None:
        """Note that a handler for some sites meets a latent site, be it one of those or not."""
        self._met.setdefault((handler, names), set()).update({site} & {*names})

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Note that modules are frozen, and whether they are called."""
        for module in modules:
            if id(module) in self._frozen or self._holds(module):
                continue
            self._frozen[id(module)] = module
            for part in module.modules():
                self._hooks.append(part.register_forward_pre_hook(self._forgets(module)))

    def __enter__(self) -> Named:
        """Look at the modules that are frozen around it, too."""
        for handler in runtime._PYRO_STACK:
            self.watch(getattr(handler, "frozen", ()))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Refuse names without a site, and warn of modules that have no part in the program."""
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        if error[:1] in ((), (None,)):
            for (handler, names), met in self._met.items():
                self._check(handler, names, met)
            outermost = not any(type(named) is Named for named in self.around())
            for module in self._frozen.values() if outermost else ():
                warnings.warn(
                    f"Frozen: the module {type(module).__name__} has no part in the program, so "
                    "that nothing of it is frozen; give a module that model or guide uses",
                    stacklevel=2,
                )

    def _pyro_post_sample(self, msg: Any) -> None:
        if poutine.util.site_is_subsample(msg):
            return
        if msg["is_observed"]:
            self._observed.add(msg["name"])
        else:
            self._latents[msg["name"]] += 1

    def _check(self, handler: str, names: tuple[str, ...], met: set[str]) -> None:
        for name in names:
            if name not in met:
                raise ValueError(f"{handler}(sites={[*names]}): {self._reason(handler, name)}")

    def _reason(self, handler: str, name: str) -> str:
        known = sorted(self._latents)
        if name in known:
            return f"the latent site {name!r} is not sampled inside this handler; leave it out"
        latents = ", ".join(map(repr, known))
        if name in self._observed:
            return f"{name!r} is an observed site, which {handler} leaves alone; latent: {latents}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        nearest = f"; did you mean {near[0]!r}?" if near else ""
        return f"there is no latent site {name!r}: the latent sites are {latents}{nearest}"

    def _holds(self, module: nn.Module) -> bool:
        return any(id(p) in self._parameters for p in module.parameters())

    def _forgets(self, module: nn.Module) -> Any:
        def called(*_: Any) -> None:
            self._frozen.pop(id(module), None)

        return called


class Partial(Named):
    """As ``Named``, but of a run that may be of model or guide alone.

    A handler for a site that the other one has is spared, unless it meets none of its sites.
    """

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Leave frozen modules alone: they may be those of the other one."""

    def _check(self, handler: str, names: tuple[str, ...], met: set[str]) -> None:
        saw_both = max(self._latents.values(), default=0) > 1
        if not met or saw_both:
            super()._check(handler, names, met)
