"""The parameters of a program, kept apart in Pyro's one store and in its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_vae.inference.owners import Owner, Start, fits, running

__all__ = ["OwnNames", "prepare_local_parameters", "unchanged_parameters"]


class OwnNames(Messenger):
    """Give each program its own parameters in Pyro's store, whatever names others have taken.

    A name belongs to the function that declares it (see ``owners``), as long as the store holds
    that very parameter, and within a program to model and guide alike. A module's parameter is
    never exchanged for another one.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        super().__init__()
        self._starts = (Start(model), Start(guide))
        self._enclosing: dict[Start, list[Any]] = {}
        self._declared: list[tuple[Start | None, str, str]] = []
        self._settled = all(start.settled for start in self._starts)

    def _pyro_sample(self, msg: Any) -> None:
        if not self._settled:
            self._look()

    def _pyro_param(self, msg: Any) -> None:
        if not _in_store(msg) or "stated" in msg:
            return
        name, *rest = msg["args"]
        initial = rest[0] if rest else None
        own = self._known(name, initial) or self._found(name, initial)
        own = own or _new_name(name, initial)
        msg["stated"], msg["name"], msg["args"] = name, own, (own, *rest)

    def _pyro_post_param(self, msg: Any) -> None:
        if not _in_store(msg):
            return
        owned = Owner.has(pyro.get_param_store()._params[msg["name"]])
        if not owned or self._known(msg["stated"]) != msg["name"]:
            start, _ = self._look()
            self._declared.append((start, msg["stated"], msg["name"]))
            if self._settled or start is None:
                self._register()

    def __exit__(self, *error: Any) -> None:
        """Note to whom new parameters belong, now that all statements of a run were seen."""
        super().__exit__(*error)
        self._register()
        if error[0] is None:
            for start, owners in self._enclosing.items():
                start.ran(owners[0])

    def _known(self, name: str, initial: Any = None) -> str | None:
        """Return what a name stands for, where that is settled whoever of the two states it."""
        if not self._settled:
            return None
        known = {Owner.of(start.root).find(name, initial) for start in self._starts} - {None}
        return known.pop() if len(known) == 1 else None

    def _found(self, name: str, initial: Any) -> str | None:
        """Return the name of what the running function has declared, or else its partner."""
        running, owners = self._look()
        partners = [start.owner for start in self._starts if start is not running]
        found = (Owner.of(owner).find(name, initial) for owner in [*owners, *partners])
        new = (own for _, stated, own in self._declared if stated == name and fits(own, initial))
        return next((own for own in chain(found, new) if own is not None), None)

    def _look(self) -> tuple[Start | None, list[Any]]:
        """Return which of the two runs, and what encloses all of its statements so far."""
        start, owners = running(self._starts)
        if start is not None:
            before = self._enclosing.get(start, owners)
            owners = [owner for owner in owners if any(owner is other for other in before)]
            self._enclosing[start] = owners
        return start, owners

    def _register(self) -> None:
        for start, stated, own in self._declared:
            unknown = [each.root for each in self._starts]
            for owner in unknown if start is None else self._enclosing[start][:1]:
                Owner.of(owner).add(stated, own)
        self._declared.clear()


def _new_name(name: str, initial: Any) -> str:
    own, number = name, 1
    while _taken(own, initial):
        number += 1
        own = f"{name}#{number}"
    return own


def _taken(name: str, initial: Any) -> bool:
    held = pyro.get_param_store()._params.get(name)
    if held is None:
        return False
    return Owner.has(held) or not fits(name, initial)


def _in_store(msg: Any) -> bool:
    # A PyroModule's own parameter makes a statement too, but never reaches the store.
    return bool(msg["fn"] == pyro.get_param_store().get_param)


def prepare_local_parameters(root: nn.Module) -> None:
    """Let every PyroModule below ``root`` run with parameters of its own.

    Pyro creates the state that this takes only if the setting was on when the module was built.
    """
    for module in root.modules():
        if isinstance(module, PyroModule) and not hasattr(module._pyro_context, "param_state"):
            module._pyro_context.param_state = {"params": {}, "constraints": {}}


@contextmanager
def unchanged_parameters(roots: tuple[nn.Module, ...]) -> Iterator[None]:
    """Forget, on leaving, every parameter that was made within: in the store or below ``roots``."""
    store = pyro.get_param_store()
    state = store.get_state()
    tables = [table for root in roots for module in root.modules() for table in _tables(module)]
    before = [dict(table()) for table in tables]
    try:
        yield
    finally:
        store.clear()
        store.set_state(state)
        for table, names in zip(tables, before, strict=True):
            for name in set(table()) - set(names):
                del table()[name]


def _tables(module: nn.Module) -> Iterator[Callable[[], dict[str, Any]]]:
    """Give the tables in which a module keeps parameters, also those made at their first use."""
    yield lambda: module._parameters
    if isinstance(module, PyroModule):
        context = module._pyro_context
        yield lambda: module._pyro_params
        yield lambda: context.param_state["params"]
        yield lambda: context.param_state["constraints"]
