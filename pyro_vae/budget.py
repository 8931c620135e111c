"""Refuse computations that need more memory than there is, before they start."""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from pyro_vae import memory

__all__ = ["Budget", "OverBudgetError", "count_devices", "refuse_numbers"]

_LOOKED_AT = 2**26  # bytes that a single operation may take without a look
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_SQUARES = ("eye", "diag_embed")
_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


class OverBudgetError(memory.TooLargeError):
    """An operation would take more memory than there is; nothing was taken.

    Attributes:
        shape: Of the tensor that it would make; empty where it is not one.
        of_operations: Whether it is too many operations.
    """

    def __init__(
        self, message: str, shape: tuple[int, ...] = (), *, of_operations: bool = False
    ) -> None:
        super().__init__(message)
        self.shape, self.of_operations = shape, of_operations


class Budget(TorchDispatchMode):
    """Refuse operations whose result is larger than the free memory, and count what others take.

    Args:
        most_operations: Refuse more than so many operations; None: take any number.
        copies: How many of each tensor are to come: of parameters that are trained, four.
        refusing: Whether to refuse; otherwise only count.

    Attributes:
        allocated: Bytes of all tensors that were made.
        peak: The most bytes of them that were alive at once.
        largest_product: The most multiplications of a single product or convolution.
        multiplications: Of all products and convolutions.
    """

    def __init__(
        self, *, most_operations: int | None = None, copies: int = 1, refusing: bool = True
    ) -> None:
        super().__init__()
        self._most_operations, self._copies, self._refusing = most_operations, copies, refusing
        self.multiplications = 0
        self.allocated = self.peak = self._alive = self._num_operations = 0
        self.largest_product = 0
        self._storages: dict[int, Any] = {}

    def __enter__(self) -> Any:
        """Begin to look at operations."""
        count_devices()
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._num_operations += 1
        if self._most_operations is not None and self._num_operations > self._most_operations:
            raise OverBudgetError(
                f"more than {self._most_operations:,} operations only to build the program; give "
                "it fewer layers or flows",
                of_operations=True,
            )
        if self._refusing and 8 * _most_numbers(func, args, kwargs) > _LOOKED_AT:
            _refuse(func, args, kwargs, self._copies)
        result = func(*args, **kwargs)
        if (flops := flop_registry.get(func.overloadpacket)) is not None:
            count = flops(*args, **kwargs, out_val=result) // 2
            self.largest_product = max(self.largest_product, count)
            self.multiplications += count
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self.allocated += size
        self._alive += size
        self.peak = max(self.peak, self._alive)

        def release(_: Any) -> None:
            self._storages.pop(key, None)
            self._alive -= size

        self._storages[key] = weakref.ref(storage, release)


def count_devices() -> None:
    """Let autograd count the devices; to be called before tensors without data are made.

    It counts when it is first used. After tensors without data it finds one too many, and then
    refuses to work in forked processes.
    """
    with torch.inference_mode(False), torch.enable_grad():
        torch.ones((), requires_grad=True).backward()


def refuse_numbers(times: int, shape: tuple[int, ...], what: str, cure: str) -> None:
    """Refuse so many tensors of float32 of a shape before any is made.

    Raises:
        OverBudgetError: If they take more memory than there is; says what they are, and the cure.
    """
    needed, free = times * 4 * math.prod(shape), memory.available()
    if free is not None and needed > free:
        raise OverBudgetError(
            f"{shape[0]:,} {what} of {shape[1:]}, with gradients and the optimiser's state, take "
            f"{memory.shown(needed)}, and {memory.shown(free)} are free; {cure}",
            shape,
        )


def _most_numbers(func: Any, args: Any, kwargs: dict[str, Any]) -> float:
    """Bound the size of a result from above, at little cost."""
    leaves = tree_leaves((args, kwargs))
    shapes = [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]
    sizes = [leaf for leaf in leaves if isinstance(leaf, int) and leaf > 1]
    largest = max((shape.numel() for shape in shapes), default=1)
    name = func.overloadpacket.__name__
    if name in _SQUARES:
        return float(max([largest, *sizes])) ** 2
    if shapes and name in _PRODUCTS:
        first, second = shapes[-2:]
        return max(largest, first[:-1].numel() * second[-1])
    try:
        together = torch.broadcast_shapes(*shapes).numel()
    except RuntimeError:
        together = math.prod(float(shape.numel()) for shape in shapes)
    return max(largest, together) * math.prod(map(float, sizes))


def _refuse(func: Any, args: Any, kwargs: dict[str, Any], copies: int) -> None:
    """Run on tensors without memory, and hold the size of the result against the free memory."""
    # A view, or a tensor that is written in place, takes no memory of its own.
    if all(returned.alias_info is not None for returned in func._schema.returns):
        return
    try:
        with _unlogged(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
            made = [x for x in tree_leaves(func(*fakes[0], **fakes[1])) if isinstance(x, Tensor)]
    except Exception:  # the operation itself will say what is wrong with it
        return
    given = {id(leaf) for leaf in tree_leaves(fakes)}
    new = [leaf for leaf in made if id(leaf) not in given and not leaf._is_view()]
    free = memory.available()
    for leaf in new:
        size = copies * leaf.untyped_storage().nbytes()
        if free is not None and leaf.device.type != "cuda" and size > free:
            shape = tuple(leaf.shape)
            trained = "" if copies == 1 else ", with gradients and the optimiser's state,"
            raise OverBudgetError(
                f"a tensor of shape {shape}{trained} takes {memory.shown(size)}, and "
                f"{memory.shown(free)} are free; make what has this size smaller: layers, "
                "latents, particles or batch",
                shape,
            )


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from printing why an operation fails on tensors without memory."""
    disabled, _FAKE_LOG.disabled = _FAKE_LOG.disabled, True
    try:
        yield
    finally:
        _FAKE_LOG.disabled = disabled
