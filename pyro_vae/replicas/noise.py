"""Random numbers of several replicas: each has a generator state of its own.

A replica that runs by itself finds its state in the global generators. A step of all replicas at
once draws from none: its draws are taken out of the recorded graph and become its inputs, filled
for each replica from a generator in that replica's state, in the order of the recording. So both
give one replica the same bits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pyro_vae.recording.recorder import NotRecordable

__all__ = ["Draw", "RandomState", "strided_empty", "take_out_draws", "unmoved"]

aten = torch.ops.aten
_Fill = Callable[[Tensor, torch.Generator], Any]


class RandomState:
    """The state of all global generators as one replica left it.

    Args:
        device: Where the replica is trained.
    """

    def __init__(self, device: torch.device) -> None:
        self._generators = {"cpu": torch.Generator()}
        if device.type != "cpu":
            self._generators[device.type] = torch.Generator(device)
        self._device = device
        self._python: Any = None
        self._numpy: Any = None
        self._take()

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a generator in this state; what is drawn from it moves the state.

        Raises:
            NotRecordable: If the replica's device is another one.
        """
        if device.type not in self._generators:
            raise NotRecordable(f"it draws on {device}, but is trained on {self._device}")
        return self._generators[device.type]

    @contextmanager
    def taken_up(self) -> Iterator[None]:
        """Let the global generators go on from here, and note on leaving where they are."""
        self._put()
        try:
            yield
        finally:
            self._take()

    def rewinder(self) -> Callable[[], None]:
        """Return a function that comes back to the present state."""
        before = {kind: generator.get_state() for kind, generator in self._generators.items()}
        python, numpy = self._python, self._numpy

        def rewind() -> None:
            for kind, state in before.items():
                self._generators[kind].set_state(state)
            self._python, self._numpy = python, numpy

        return rewind

    def _take(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        for kind, generator in self._generators.items():
            generator.set_state(_GET[kind](self._device))

    def _put(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for kind, generator in self._generators.items():
            _SET[kind](generator.get_state(), self._device)


_GET: dict[str, Callable[[torch.device], Tensor]] = {
    "cpu": lambda _: torch.get_rng_state(),
    "cuda": torch.cuda.get_rng_state,
    "mps": lambda _: torch.mps.get_rng_state(),
}
_SET: dict[str, Callable[[Tensor, torch.device], None]] = {
    "cpu": lambda state, _: torch.set_rng_state(state),
    "cuda": torch.cuda.set_rng_state,
    "mps": lambda state, _: torch.mps.set_rng_state(state),
}


@contextmanager
def unmoved(*states: RandomState) -> Iterator[None]:
    """Come back to the present states on leaving."""
    rewinders = [state.rewinder() for state in states]
    try:
        yield
    finally:
        for rewind in rewinders:
            rewind()


def strided_empty(num_replicas: int, like: Tensor) -> Tensor:
    """Return memory for ``[num_replicas, *shape]``, in which each slice is laid out as ``like``."""
    reaches = [(n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True)]
    extent = 1 + sum(reaches) if like.numel() else 0
    shape, strides = (num_replicas, *like.shape), (extent, *like.stride())
    return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)


class Draw:
    """One random tensor of a step, for all replicas.

    Args:
        like: A tensor of its shape, layout, type and device for one replica.
        fill: Draws it into a tensor from a generator.
        states: The replicas' random states.
    """

    def __init__(self, like: Tensor, fill: _Fill, states: Sequence[RandomState]) -> None:
        self._values = strided_empty(len(states), like)
        self._fill = fill
        generators = [state.generator(like.device) for state in states]
        self._targets = list(zip(self._values.unbind(0), generators, strict=True))

    def __call__(self) -> Tensor:
        """Draw anew, and return all replicas' values, ``[num_replicas, *shape]``."""
        for target, generator in self._targets:
            self._fill(target, generator)
        return self._values


def take_out_draws(graph: fx.Graph, states: Sequence[RandomState]) -> list[Draw]:
    """Make the draws of a graph its last inputs; return how they are made, in their order.

    Args:
        graph: The operations of one replica; changed.
        states: The replicas' random states.

    Raises:
        NotRecordable: If the distribution of a draw depends on values, or a generator other than
            the global one is drawn from.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function" and _is_random(node)]
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    draws = []
    for number, node in enumerate(nodes):
        draws.append(Draw(_like(node), _filling(node), states))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{number}")
        last.meta["val"] = node.meta["val"]
        _replace(node, last)
    return draws


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _like(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise NotRecordable(f"{node.target} gives more than one tensor")
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _filling(node: fx.Node) -> _Fill:
    if any(isinstance(part, torch.Generator) for part in (*node.args, *node.kwargs.values())):
        raise NotRecordable("it draws from a generator of its own")
    numbers = [part for part in node.args if not isinstance(part, fx.Node)]
    if node.target in _IN_PLACE and not any(_nodes(node)[1:]):
        fill: Any = node.target
        rest = node.args[1:]
        named = {name: value for name, value in node.kwargs.items() if name != "generator"}
        return lambda target, generator: fill(target, *rest, **named, generator=generator)
    if node.target in _UNIFORM:
        return lambda target, generator: target.uniform_(generator=generator)
    if node.target in _NORMAL:
        return lambda target, generator: target.normal_(generator=generator)
    if node.target in _INTEGERS:
        low, high = _INTEGERS[node.target](numbers)
        return lambda target, generator: target.random_(low, high, generator=generator)
    raise NotRecordable(f"{node.target} draws by values, which cannot be done ahead of a step")


def _nodes(node: fx.Node) -> list[fx.Node]:
    return [part for part in (*node.args, *node.kwargs.values()) if isinstance(part, fx.Node)]


_IN_PLACE = {
    *(aten.normal_.default, aten.uniform_.default, aten.exponential_.default),
    *(aten.bernoulli_.float, aten.geometric_.default, aten.log_normal_.default),
    *(aten.cauchy_.default, aten.random_.default, aten.random_.to, getattr(aten.random_, "from")),
}
_UNIFORM = {aten.rand.default, aten.rand_like.default}
_NORMAL = {aten.randn.default, aten.randn_like.default}
_INTEGERS: dict[Any, Callable[[list[Any]], tuple[int, int]]] = {
    aten.randint.default: lambda numbers: (0, numbers[0]),
    aten.randint.low: lambda numbers: (numbers[0], numbers[1]),
}


def _replace(node: fx.Node, drawn: fx.Node) -> None:
    """Let ``drawn`` stand for what a node drew, and for the tensor that it drew into."""
    if node.target in _IN_PLACE:
        target = node.args[0]
        assert isinstance(target, fx.Node)
        if not (_is_new(target) and next(iter(target.users)) is node):
            with node.graph.inserting_before(node):
                copied = node.graph.call_function(aten.copy_.default, (target, drawn))
            node.replace_all_uses_with(copied)
            node.graph.erase_node(node)
            return
        target.replace_all_uses_with(drawn)
    node.replace_all_uses_with(drawn)
    node.graph.erase_node(node)


def _is_new(node: fx.Node) -> bool:
    """Whether a node makes a tensor that shares memory with no other."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and all(result.alias_info is None for result in schema.returns)
