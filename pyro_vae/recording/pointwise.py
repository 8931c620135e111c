r"""An optimiser's fused kernels as pointwise operations, which a compiler fuses with gradients.

A fused kernel reads the gradients that the step has just written, in a pass of its own. Written
out, its arithmetic joins the operations before it. What it takes from the count of steps and from
the learning rate, such as Adam's :math:`1 - \beta^t`, is one number for a whole parameter. The host
computes it before each call: the compiler would repeat it for each element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["WrittenOut", "give_scalars"]

_aten = torch.ops.aten
_Tensors = Sequence[Tensor]


class WrittenOut(fx.Interpreter):
    """Runs a recording with its fused kernels written out; ``give_scalars`` has prepared them."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation."""
        kernel = _KERNELS.get(getattr(target, "overloadpacket", None), target)
        return super().call_function(kernel, args, kwargs)


def give_scalars(graph: fx.GraphModule) -> Callable[[], None]:
    """Give each fused kernel of a recording a tensor for its scalars; return what fills these.

    Args:
        graph: The recording, changed in place: only ``WrittenOut`` can run it afterwards.

    Returns:
        A function to be called before each run; it reads the counts of steps and learning rates.

    Raises:
        NotImplementedError: If a kernel is used in a way that is not known here.
    """
    fills = []
    earlier: list[fx.Node] = []
    for node in list(graph.graph.nodes):
        if getattr(node.target, "overloadpacket", None) in _KERNELS:
            scalars = _Scalars(graph, node, earlier)
            with graph.graph.inserting_before(node):
                held = graph.graph.get_attr(_register(graph, scalars.tensor))
            node.kwargs = {**node.kwargs, "scalars": held}
            fills.append(scalars.fill)
        earlier.append(node)

    def fill() -> None:
        for each in fills:
            each()

    return fill


# ------------------------------------------------------------------------------------ the scalars


class _Scalars:
    r"""What a kernel takes from counts and rates, for each parameter eta_t, c_t, eta: ``[P, 3]``.

    With Adam, :math:`\eta_t = \eta / (1 - \beta_1^t)` and :math:`c_t = (1 - \beta_2^t)^{-1/2}`.
    """

    def __init__(self, graph: fx.GraphModule, node: fx.Node, earlier: list[fx.Node]) -> None:
        given = _arguments(node)
        dtypes = {getattr(graph, parameter.target).dtype for parameter in given["self"]}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            raise NotImplementedError("an optimiser of parameters in several or short formats")
        self.tensor = torch.zeros(len(given["self"]), 3, dtype=dtypes.pop())
        self._values = self.tensor.numpy()
        self._rate = _number_of(graph, given["lr"])
        self._betas = given.get("beta1", 0.0), given.get("beta2", 0.0)
        counts = given.get("state_steps", ())
        if any(not _is_counted(count, earlier) for count in counts):
            raise NotImplementedError("an optimiser that counts its steps in another way")
        if given.get("is_first_step") or given.get("grad_scale") is not None:
            raise NotImplementedError("an optimiser in its first step, or with scaled gradients")
        self._counts = [getattr(graph, count.target) for count in counts]
        self._last: list[float] = []

    def fill(self) -> None:
        """Compute the scalars of the next step."""
        rate = self._rate()
        now = [rate, *[count.item() for count in self._counts]]
        if now == self._last:
            return
        self._last = now
        of_count = {count: self._row(rate, count + 1) for count in set(now[1:])}
        if len(of_count) < 2:
            self._values[:] = next(iter(of_count.values()), (rate, 1.0, rate))
        else:
            self._values[:] = [of_count[count] for count in now[1:]]

    def _row(self, rate: float, count: float) -> tuple[float, float, float]:
        beta1, beta2 = self._betas
        return rate / (1 - beta1**count), 1 / math.sqrt(1 - beta2**count), rate


def _arguments(node: fx.Node) -> dict[str, Any]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _register(graph: fx.GraphModule, tensor: Tensor) -> str:
    name = f"scalars_{sum(name.startswith('scalars_') for name, _ in graph.named_buffers())}"
    graph.register_buffer(name, tensor)
    return name


def _is_counted(count: fx.Node, earlier: list[fx.Node]) -> bool:
    """Whether a kernel's count was one less before the step."""
    return any(
        node.target is _aten._foreach_add_.Scalar
        and node.args[1] == 1
        and any(counted.target == count.target for counted in node.args[0])  # type: ignore[union-attr]
        for node in earlier
    )


def _number_of(graph: fx.GraphModule, value: Any) -> Callable[[], float]:
    """Return what reads a learning rate: a number, a tensor that is held, or a product of such."""
    if not isinstance(value, fx.Node):
        return lambda: float(value)
    if value.op == "get_attr":
        return getattr(graph, str(value.target)).item
    if value.target is _aten.mul.Tensor:
        first, second = (_number_of(graph, factor) for factor in value.args)
        return lambda: first() * second()
    raise NotImplementedError("a learning rate that is computed in the step")


# ------------------------------------------------------------------------------------ the kernels


def _adam(
    parameters: _Tensors,
    gradients: _Tensors,
    means: _Tensors,
    squares: _Tensors,
    largest: _Tensors,
    counts: _Tensors,
    *,
    scalars: Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    found_inf: Tensor | None = None,
    decoupled: bool = False,
    **_: Any,
) -> None:
    r"""Take the step :math:`p - \eta_t m / (c_t \sqrt v + \epsilon)`."""
    for place, (p, g, m, v) in enumerate(zip(parameters, gradients, means, squares, strict=True)):
        eta_t, c_t, eta = scalars[place].unbind()
        decayed = p - eta * weight_decay * p if weight_decay and decoupled else p
        g = -g if maximize else g
        g = g + weight_decay * p if weight_decay and not decoupled else g
        new_m = m + (1 - beta1) * (g - m)
        new_v = beta2 * v + (1 - beta2) * (g * g)
        top = torch.maximum(largest[place], new_v) if amsgrad else new_v
        _put(p, decayed - eta_t * new_m / (top.sqrt() * c_t + eps), found_inf)
        _put(m, new_m, found_inf)
        _put(v, new_v, found_inf)
        if amsgrad:
            _put(largest[place], top, found_inf)


def _adamw(*args: Any, **kwargs: Any) -> None:
    _adam(*args, **kwargs, decoupled=True)


def _sgd(
    parameters: _Tensors,
    gradients: _Tensors,
    momenta: _Tensors,
    *,
    scalars: Tensor,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    found_inf: Tensor | None = None,
    **_: Any,
) -> None:
    r"""Take the step :math:`p - \eta b`, with the momentum b where there is one."""
    for place, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
        eta = scalars[place, 2]
        g = -g if maximize else g
        g = g + weight_decay * p if weight_decay else g
        if momentum:
            new = momentum * momenta[place] + (1 - dampening) * g
            _put(momenta[place], new, found_inf)
            g = g + momentum * new if nesterov else new
        _put(p, p - eta * g, found_inf)


def _put(place: Tensor, new: Tensor, failed: Tensor | None) -> None:
    place.copy_(new if failed is None else torch.where(failed > 0, place, new))


_KERNELS: dict[Any, Callable[..., None]] = {
    _aten._fused_adam_: _adam,
    _aten._fused_adamw_: _adamw,
    _aten._fused_sgd_: _sgd,
}
