"""Whose parameter is whose: each program its own, in Pyro's one store and in its modules."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pyro
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import nn

__all__ = ["OwnNames", "prepare_local_parameters", "unchanged_parameters"]


class OwnNames(Messenger):
    """Give each program its own parameters in Pyro's store, whatever names others have taken.

    A name belongs to the pair of functions that used it first, as long as they live and the store
    holds that very parameter; and a module's parameter is never exchanged for another one.
    """

    _owners: ClassVar[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        super().__init__()
        by_guide = self._owners.setdefault(_identity(model), weakref.WeakKeyDictionary())
        self.mine = by_guide.setdefault(_identity(guide), weakref.WeakValueDictionary())

    def _pyro_param(self, msg: Any) -> None:
        if not _in_store(msg):
            return
        name, *rest = msg["args"]
        initial = rest[0] if rest else None
        own, number = name, 1
        while self._taken(own, initial):
            number += 1
            own = f"{name}#{number}"
        msg["name"], msg["args"] = own, (own, *rest)

    def _pyro_post_param(self, msg: Any) -> None:
        if _in_store(msg):
            self.mine[msg["name"]] = pyro.get_param_store()._params[msg["name"]]

    def _taken(self, name: str, initial: Any) -> bool:
        held = pyro.get_param_store()._params.get(name)
        if held is None:
            return False
        if _IN_MODULE in name and isinstance(initial, nn.Parameter):
            return held is not initial
        owned = [owned for by_guide in self._owners.values() for owned in by_guide.values()]
        return self.mine.get(name) is not held and any(o.get(name) is held for o in owned)


def _in_store(msg: Any) -> bool:
    # A PyroModule's own parameter makes a statement too, but never reaches the store.
    return bool(msg["fn"] == pyro.get_param_store().get_param)


_IN_MODULE = "$$$"  # stands between the names of a pyro.module and of its parameter


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


def _identity(function: Any) -> Any:
    return getattr(function, "__self__", function)
