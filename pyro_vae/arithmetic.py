"""The float arithmetic of a run: its precision, and the fastest library and threads for it.

Three things outside a program cost it half of its speed on some machines: MKL's float32 products
run at half speed on AMD processors, where oneDNN's, in the same build of torch, do not; the C
library hands memory back to the system after every step, to ask for it again in the next; and
threads wait for each other longer than small products take.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "PRECISIONS",
    "fast_arithmetic",
    "one_thread",
    "reduced_precision",
    "suited_arithmetic",
    "suited_products",
]

PRECISIONS = ("float32", "tf32", "bfloat16")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FLOAT32_ERROR = 1e-5

# Multiplications in a product below which a second thread and oneDNN's overhead cost more than they
# gain. By size, not by time: the choice changes bits, and the same run has to make it again.
_WORTHWHILE_PRODUCT = 2**22


def suited_arithmetic(largest_product: int, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a step is fastest on a CPU, by the size of its products.

    Args:
        largest_product: The multiplications of its largest product or convolution.
        precision: See ``reduced_precision``.
    """
    if largest_product < _WORTHWHILE_PRODUCT:
        return one_thread()
    return fast_arithmetic() if precision == "float32" else nullcontext()


def suited_products(largest_product: int) -> AbstractContextManager[Any]:
    """Return the like for a single step, which is entered in microseconds and leaves no trace."""
    return one_thread() if largest_product < _WORTHWHILE_PRODUCT else _onednn_products()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fast_arithmetic() -> Iterator[bool]:
    """Take oneDNN's float32 products where they are true float32, and two things more.

    Freed memory is kept for the next step, and numbers below 1e-38 are zero, in which processors
    compute many times slower: particles whose importance weights vanish leave them behind.

    oneDNN is reached by a switch that permits lower precision; on processors with matrix units for
    bfloat16 it would really lower it. So the products are tried first, against float64, and the
    switch goes back where they are less exact than float32. It goes back afterwards, too; that
    freed memory is kept (on Linux with glibc) lasts as long as the process. Tiny numbers are zero
    in this thread and in the pool of threads that torch computes with.

    Yields:
        Whether oneDNN's products are taken. Their bits differ from those of MKL.
    """
    _keep_memory()
    flushed = _tiny_numbers_are_zero()
    _flush_tiny_numbers(True)
    try:
        with _onednn_products() as taken:
            yield taken
    finally:
        _flush_tiny_numbers(flushed)


@contextmanager
def _onednn_products() -> Iterator[bool]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        if not (taken := products_are_float32()):
            torch.set_float32_matmul_precision(before)
        yield taken
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def reduced_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Let networks compute in lower precision; weights, densities and sums stay float32.

    Args:
        precision: "float32" changes nothing; "tf32" rounds the factors of matrix products to 10
            bits of mantissa, on NVIDIA's GPUs since 2020; "bfloat16" runs matrix products and
            convolutions in bfloat16, 7 bits, under ``torch.autocast``.
        device: Where the run takes place.

    Raises:
        ValueError: If the precision has another name, or the device does not have it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision == "bfloat16":
        # Casts that are kept would outlive the weights that they were made from.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
        return
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        if device.type != "cuda":
            raise ValueError(f'precision="tf32" is for CUDA devices, not for {device}')
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def products_are_float32() -> bool:
    """Whether products of matrices on the processor, as now set, are as exact as float32."""
    return _are_float32(torch.get_float32_matmul_precision())


@functools.cache
def _are_float32(precision: str) -> bool:
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((64, 512, 96), (128, 784, 400), (400, 128, 784)):
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(inner, columns, generator=generator)
        exact = a.double() @ b.double()
        error = (a @ b - exact).abs().max() / exact.abs().max()
        if error > _FLOAT32_ERROR:
            return False
    return True


def _tiny_numbers_are_zero() -> bool:
    return bool(torch.tensor(1e-30) * 1e-10 == 0)


def _flush_tiny_numbers(flush: bool) -> None:
    """Set how each thread of torch's pool treats numbers below 1e-38: it is theirs, one by one.

    A thread inherits the setting when it is started, and the pool mostly has been by now. So each
    of its threads is asked, through the library that runs it (GNU's, in torch for Linux).
    """
    torch.set_flush_denormal(flush)
    libraries = list((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    run = getattr(ctypes.CDLL(str(libraries[0])), "GOMP_parallel", None) if libraries else None
    if run is not None:
        set_flag = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
            lambda _: torch.set_flush_denormal(flush) and None
        )
        run(set_flag, None, ctypes.c_uint(torch.get_num_threads()), ctypes.c_uint(0))


def _keep_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
