"""Compile a recorded graph with Inductor.

The tensors that a recording holds become inputs, so that weights are read anew at every call, and
the compiled function is called without ``torch.compile``'s checks: the recorder has made its own.
Random numbers stay torch's, in the order of the recording: one seed gives the eager noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module

from pyro_vae.recording.ahead import library
from pyro_vae.recording.masks import choose_by_masks
from pyro_vae.recording.pointwise import WrittenOut, give_scalars
from pyro_vae.wording import warn

__all__ = ["compiled", "lift", "pays"]

_SECONDS_EACH_COMPILATION, _SECONDS_EACH_OPERATION = 10.0, 0.03
_SECONDS_SAVED_EACH_OPERATION, _BYTES_SAVED_EACH_SECOND = 2e-6, 6e9


def compiled(graph: fx.GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a recording; where that fails, say so once and return the recording.

    From the first fused kernel of an optimiser on, the graph stays as it is: Inductor would take
    that kernel apart into slower ones.

    Args:
        graph: The recording, whose attributes are the tensors it reads and writes.
        args: Its arguments, on which the shapes are fixed.
    """
    validates = Distribution._validate_args
    try:
        for way in (_ahead_of_time, _with_compiled_head):
            try:
                return way(graph, args)
            except Exception as error:  # of compilers of two languages; the recording works
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warn(f"not compiled, only recorded, since {reason}")
        return graph
    finally:
        Distribution.set_default_validate_args(validates)  # the compiler's import turns it off


def pays(graph: fx.GraphModule, num_calls: int) -> bool:
    """Whether compiling a recording saves more time than it takes, over so many calls.

    Decided from the recording alone, by what was measured on a two-core machine, so that the same
    run decides the same again: fusing saves each operation's overhead, and the reading and writing
    of results that element-wise operations hand to each other.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    element_wise = [node for node in nodes if torch.Tag.pointwise in _tags(node)]
    num_bytes = sum(_bytes(node) for node in element_wise)
    saved = _SECONDS_SAVED_EACH_OPERATION * len(nodes) + num_bytes / _BYTES_SAVED_EACH_SECOND
    return num_calls * saved > _SECONDS_EACH_COMPILATION + _SECONDS_EACH_OPERATION * len(nodes)


def _ahead_of_time(graph: fx.GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile the whole, the optimiser's kernels written out, for the processor."""
    graph = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    choose_by_masks(graph)
    fill = give_scalars(graph)
    tensors = lift(graph)
    inputs = [*args, *tensors]
    if any(tensor.device.type != "cpu" for tensor in inputs):
        raise NotImplementedError("it does not run on the processor")
    with torch.no_grad():
        flat = make_fx(WrittenOut(graph).run, tracing_mode="fake")(*inputs)
        flat.graph.set_codegen(fx.graph.CodeGen())  # without code for nested arguments
        flat.recompile()
        run = library(flat, inputs)

    def call(*args: Tensor) -> Any:
        fill()
        return run([*args, *tensors])

    return call


def _with_compiled_head(graph: fx.GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
    graph = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    choose_by_masks(graph)
    tensors = lift(graph)
    inputs = (*args, *tensors)
    part_of = _parts(graph)
    if not any(map(part_of, graph.graph.nodes)):
        function = _inductor(graph, inputs)
        return lambda *args: function(*args, *tensors)
    parts = split_module(graph, graph, part_of, keep_original_order=True)
    nodes = list(parts.graph.nodes)
    places = {node: place for place, node in enumerate(nodes) if node.op == "placeholder"}
    head = next(node for node in nodes if node.op == "call_module")
    its_inputs = [inputs[places[node]] for node in head.args]
    setattr(parts, head.target, _Call(_inductor(parts.get_submodule(head.target), its_inputs)))
    return lambda *args: parts(*args, *tensors)


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


def _parts(graph: fx.GraphModule) -> Callable[[fx.Node], int]:
    part, numbers = 0, {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and _is_optimizers(node):
            part = 1
        numbers[node] = part
    return numbers.__getitem__


def _is_optimizers(node: fx.Node) -> bool:
    return str(node.target).startswith(("aten._fused_", "aten._foreach_"))


def _inductor(graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    import torch._inductor  # it takes a second

    on_gpu = any(tensor.is_cuda for tensor in inputs)
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": on_gpu}
    with torch.no_grad():
        examples: list[Any] = [tensor.detach() for tensor in inputs]
        return torch._inductor.compile(graph, examples, options=options)


def lift(graph: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds its last inputs; return them."""
    inputs: dict[int, tuple[fx.Node, Tensor]] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(graph, node.target)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the program holds a {type(tensor).__name__}, which is no tensor")
        if id(tensor) not in inputs:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"held_{len(inputs)}")
            inputs[id(tensor)] = (last, tensor)
        node.replace_all_uses_with(inputs[id(tensor)][0])
        graph.graph.erase_node(node)
    graph.recompile()
    return [tensor for _, tensor in inputs.values()]


def _tags(node: fx.Node) -> Any:
    return getattr(node.target, "tags", ())


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
