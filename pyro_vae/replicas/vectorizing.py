"""The step of several replicas up to the gradients, as one function of stacked tensors.

Each replica's step is recorded. Recordings that are alike but for the tensors that they hold are
one function of these tensors, which ``torch.vmap`` runs once over all of them, stacked. The
replicas' own tensors become slices of the stacks, so that each remains an ordinary program.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.engine.step import Step
from pyro_vae.recording.compiling import lift
from pyro_vae.recording.recorder import NotRecordable
from pyro_vae.replicas.noise import RandomState, strided_empty, take_out_draws, unmoved

__all__ = ["Form", "Stacks"]

aten = torch.ops.aten
_Batch = tuple[Tensor, ...]


class Stacks:
    """Tensors of the replicas that stand for each other, joined in one memory."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[int, ...], tuple[Tensor, tuple[Tensor, ...]]] = {}
        self._addresses: list[int] = []
        self._members: list[Tensor] = []

    def of(self, members: tuple[Tensor, ...]) -> Tensor:
        """Return the stack of which these are the slices; they become so at the first call.

        Raises:
            NotRecordable: If they differ in shape or type.
        """
        key = tuple(map(id, members))
        if key in self._stacks:
            return self._stacks[key][0]
        if len({(m.shape, m.dtype, m.device, m.stride()) for m in members}) > 1:
            raise NotRecordable("tensors of the replicas differ in shape, type or layout")
        stack = strided_empty(len(members), members[0])
        for member, part in zip(members, stack.unbind(0), strict=True):
            part.copy_(member.detach())
            member.data = part
        self._stacks[key] = (stack, members)
        self._members.extend(members)
        self._addresses.extend(map(Tensor.data_ptr, members))
        return stack

    def all(self) -> list[Tensor]:
        """Return all stacks."""
        return [stack for stack, _ in self._stacks.values()]

    def are_whole(self) -> bool:
        """Whether all members are still slices of their stacks."""
        return list(map(Tensor.data_ptr, self._members)) == self._addresses

    def separate(self) -> None:
        """Give each member memory of its own, unless it has taken some already."""
        for member, address in zip(self._members, self._addresses, strict=True):
            if member.data_ptr() == address:
                member.data = strided_empty(1, member)[0].copy_(member.detach())


class Form:
    """A step up to the gradients, of stacked batches, random numbers and tensors that it holds.

    Args:
        steps: Whose step it is.
        states: Their random states.
        batches: What each step is called with.
        stacks: Where tensors are joined.

    Attributes:
        trained: The places of the parameters that have a gradient.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        states: Sequence[RandomState],
        batches: Sequence[_Batch],
        stacks: Stacks,
    ) -> None:
        self._states, self._batches = states, batches
        self._singles = []
        held = []
        for step, state, batch in zip(steps, states, batches, strict=True):
            with unmoved(state), state.taken_up():
                graph = step.graph(*batch)
            held.append(lift(graph))
            self._singles.append(graph)
        for place, graph in enumerate(self._singles):
            _check_alike(self._singles[0], graph, place)
        graph = fx.GraphModule(self._singles[0], copy.deepcopy(self._singles[0].graph))
        self.trained = _keep_tensors(graph.graph)
        self._shapes = [arg.shape for arg in batches[0]]
        self._draws = take_out_draws(graph.graph, states)
        self._own = [tuple(members) for members in zip(*held, strict=True)]
        changing = {id(t) for step in steps for t in step.tensors}
        self._held = _joined(self._own, changing, stacks)
        _check_changes(graph.graph, len(self._shapes), self._held)
        self._rows = _take_out_gathers(graph.graph, len(self._shapes), self._held)
        _write_by_copies(graph.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        self._graph = graph

    def fits(self, args: Sequence[Tensor]) -> bool:
        """Whether these are stacked batches of its shapes."""
        return [arg.shape[1:] for arg in args[: len(self._shapes)]] == self._shapes

    def draw(self) -> list[Tensor]:
        """Draw the random numbers of a step from the replicas' states."""
        return [draw() for draw in self._draws]

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Return the losses and, for each trained parameter, the gradients.

        Args:
            args: The stacked batches, then what ``draw`` returned.
        """
        return self._run(args, [held for held, _ in self._held])

    def check(self, args: Sequence[Tensor]) -> None:
        """Hold the joint step against each replica's own, under the same random numbers.

        Raises:
            NotRecordable: If they differ by more than rounding.
        """
        stacked = [held if dim is None else held.clone() for held, dim in self._held]
        with unmoved(*self._states):
            found = self._run((*args, *self.draw()), stacked)
        for place, (single, state) in enumerate(zip(self._singles, self._states, strict=True)):
            own = [
                members[place] if dim is None else members[place].detach().clone()
                for members, (_, dim) in zip(self._own, self._held, strict=True)
            ]
            with unmoved(state), state.taken_up():
                loss, *gradients = [t for t in single(*self._batches[place], *own) if t is not None]
            pairs = zip(stacked, own, self._held, strict=True)
            changed = [([s[place]], [o]) for s, o, (_, dim) in pairs if dim is not None]
            results = [([found[0][place]], [loss]), ([f[place] for f in found[1:]], gradients)]
            rounding = _rounding([loss, *gradients])
            if not all(_agree(*result, rounding) for result in [*results, *changed]):
                raise NotRecordable("the joint step does not give the replicas' own numbers")
        self._singles, self._batches = [], []

    def _run(self, args: Sequence[Tensor], held: Sequence[Tensor]) -> tuple[Tensor, ...]:
        batches, noise = args[: len(self._shapes)], args[len(self._shapes) :]
        rows = [
            held[place].index_select(0, batches[index].flatten()).unflatten(0, batches[index].shape)
            for place, index in self._rows
        ]
        dims = [*[0] * len(batches), *[dim for _, dim in self._held], *[0] * len([*noise, *rows])]
        step = torch.vmap(self._graph, in_dims=tuple(dims), randomness="error")
        try:
            # Operations without a rule of their own run once for each replica, in the graph, too.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                return step(*batches, *held, *noise, *rows)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if "not enough memory" in str(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise NotRecordable(f"its operations have no joint form ({reason})") from error


def _keep_tensors(graph: fx.Graph) -> tuple[int, ...]:
    """Let a step return no None; return which gradients it then returns."""
    output = next(node for node in graph.nodes if node.op == "output")
    loss, *gradients = output.args[0]
    places = tuple(place for place, gradient in enumerate(gradients) if gradient is not None)
    output.args = ((loss, *(gradients[place] for place in places)),)
    return places


def _joined(
    own: Sequence[tuple[Tensor, ...]], changing: set[int], stacks: Stacks
) -> list[tuple[Tensor, int | None]]:
    """Return each held tensor of all replicas, and along which dimension they differ, if any."""
    alone = [
        all(member is members[0] for member in members)
        or not (id(members[0]) in changing or _differ(members))
        for members in own
    ]
    for place in range(len(own[0]) if own else 0):
        memories = [
            members[place].untyped_storage()._cdata
            for members, same in zip(own, alone, strict=True)
            if not same
        ]
        if len(set(memories)) < len(memories):
            raise NotRecordable("two of its tensors share memory")
    return [
        (members[0], None) if same else (stacks.of(members), 0)
        for members, same in zip(own, alone, strict=True)
    ]


def _differ(members: Sequence[Tensor]) -> bool:
    # Constants of the recording itself: they stay what they are.
    return not all(torch.equal(member, members[0]) for member in members[1:])


def _check_changes(
    graph: fx.Graph, num_args: int, held: Sequence[tuple[Tensor, int | None]]
) -> None:
    """Refuse a step that changes a tensor which all replicas share."""
    places = [node for node in graph.nodes if node.op == "placeholder"][num_args:]
    for node, (tensor, dim) in zip(places, held, strict=False):
        if dim is None and any(_writes(user, node) for user in node.users):
            raise ValueError(
                f"a step changes a tensor of shape {list(tensor.shape)} that all replicas share: "
                "give each program its own, and build the objective from no shared tensors"
            )


def _writes(user: fx.Node, node: fx.Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    return schema is not None and any(
        argument.alias_info is not None and argument.alias_info.is_write and given is node
        for argument, given in zip(schema.arguments, user.args, strict=False)
    )


def _take_out_gathers(
    graph: fx.Graph, num_args: int, held: Sequence[tuple[Tensor, int | None]]
) -> list[tuple[int, int]]:
    """Make rows that are gathered by index from shared tensors inputs; return whose and which.

    One kernel then gathers the rows of all replicas; ``torch.vmap`` would take one number a time.
    """
    places = [node for node in graph.nodes if node.op == "placeholder"]
    last = places[-1]
    found: list[tuple[int, int]] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.index_select.default:
            continue
        data, dim, index = node.args
        place = places.index(data) - num_args if data in places else -1
        if dim == 0 and index in places[:num_args] and place >= 0 and held[place][1] is None:
            with graph.inserting_after(last):
                last = graph.placeholder(f"rows_{len(found)}")
            node.replace_all_uses_with(last)
            graph.erase_node(node)
            found.append((place, places.index(index)))
    return found


def _write_by_copies(graph: fx.Graph) -> None:
    """Let operations in place that ``torch.vmap`` has no rule for copy their result in place."""
    for node in list(graph.nodes):
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        if node.op != "call_function" or not name.endswith("_") or _has_rule(name, overload):
            continue
        packet = getattr(aten, name.removesuffix("_"), None)
        if packet is None or overload not in packet.overloads():
            continue
        with graph.inserting_before(node):
            result = graph.call_function(getattr(packet, overload), node.args, node.kwargs)
            written = graph.call_function(aten.copy_.default, (node.args[0], result))
        node.replace_all_uses_with(written)
        graph.erase_node(node)


def _has_rule(name: str, overload: str) -> bool:
    full = f"aten::{name}" if overload == "default" else f"aten::{name}.{overload}"
    return torch._C._dispatch_has_kernel_for_dispatch_key(full, "FuncTorchBatched")


def _check_alike(first: fx.GraphModule, other: fx.GraphModule, place: int) -> None:
    """Refuse replicas that do other than the same to their tensors."""
    nodes, others = list(first.graph.nodes), list(other.graph.nodes)
    twins = dict(zip(nodes, others, strict=False))
    for node, twin in twins.items():
        if node.op != twin.op or (node.op == "call_function" and node.target != twin.target):
            raise NotRecordable(f"replica {place} runs {twin.target} where 0 runs {node.target}")
        if not _same((node.args, node.kwargs), (twin.args, twin.kwargs), twins):
            raise NotRecordable(
                f"{node.target} takes other constants in replica {place} than in 0: keep what "
                "differs in tensors"
            )
    if len(nodes) != len(others):
        raise NotRecordable(f"replica {place} runs other operations than 0")


def _same(one: Any, other: Any, twins: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(one, fx.Node):
        return twins.get(one) is other
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(
            _same(a, b, twins) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k], twins) for k in one)
    return type(one) is type(other) and repr(one) == repr(other)


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor], rounding: float) -> bool:
    """Whether numbers are the same up to the rounding of the largest."""
    sizes = [float(e.detach().abs().nan_to_num().max()) for e in expected if e.numel()]
    scale = max(sizes, default=0.0)
    return all(
        torch.allclose(f, e, rtol=0.0, atol=rounding * scale, equal_nan=True)
        for f, e in zip(found, expected, strict=True)
    )


def _rounding(results: Sequence[Tensor]) -> float:
    """Return the relative error up to which sums of other order may differ."""
    device = results[0].device
    if torch.is_autocast_enabled(device.type) or device.type != "cpu":
        return 0.05
    return 1e-9 if {result.dtype for result in results} == {torch.float64} else 1e-4
