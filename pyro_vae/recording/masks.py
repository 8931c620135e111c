"""Indexing by a mask, as in ``y[mask] = x[mask]``, without sizes that depend on values.

A compiler needs to know all sizes. What is picked by a mask and put back by the same mask is a
choice between two tensors of known size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["choose_by_masks"]

_aten = torch.ops.aten


def choose_by_masks(graph: fx.GraphModule) -> None:
    """Replace, in place, picking and putting by one mask by a choice, where the pair is found.

    Args:
        graph: A recording; its nodes hold what they gave in ``meta["val"]``.
    """
    for node in list(graph.graph.nodes):
        if node.target is _aten.new_zeros.default and _is_picked(node.args[0]):
            node.replace_input_with(node.args[0], node.args[0].args[0])  # of its kind alone
        if node.target in (_aten.index_put.default, _aten.index_put_.default):
            _choose(graph.graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _choose(graph: fx.Graph, node: fx.Node) -> None:
    target, masks, values, *accumulate = node.args
    mask = _only_mask(masks)
    source = None if mask is None else _source(values, mask)
    if mask is None or source is None:
        return
    with graph.inserting_before(node):
        shape = [*mask.meta["val"].shape, *[1] * (_dim(target) - _dim(mask))]
        wide = graph.call_function(_aten.view.default, (mask, shape))
        if any(accumulate):
            zero = graph.call_function(_aten.zeros_like.default, (target,))
            added = graph.call_function(_aten.where.self, (wide, source, zero))
            chosen = graph.call_function(_aten.add.Tensor, (target, added))
        else:
            chosen = graph.call_function(_aten.where.self, (wide, source, target))
        if node.target is _aten.index_put_.default:
            chosen = graph.call_function(_aten.copy_.default, (target, chosen))
    chosen.meta = dict(node.meta)
    node.replace_all_uses_with(chosen)
    graph.erase_node(node)


def _only_mask(masks: Any) -> fx.Node | None:
    if len(masks) != 1 or masks[0] is None or _value(masks[0]).dtype != torch.bool:
        return None
    return masks[0]


def _source(values: Any, mask: fx.Node) -> fx.Node | None:
    """Return a tensor of known size of which ``values`` are those that the mask picks."""
    if _is_picked(values) and _only_mask(values.args[1]) is mask:
        return values.args[0]
    if values.target is _aten.zeros.default:
        with values.graph.inserting_after(values):
            return values.graph.call_function(
                _aten.scalar_tensor.default, (0.0,), {"dtype": _value(values).dtype}
            )
    return None


def _is_picked(node: Any) -> bool:
    return node.target is _aten.index.Tensor and _only_mask(node.args[1]) is not None


def _value(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _dim(node: Any) -> int:
    return _value(node).dim()
