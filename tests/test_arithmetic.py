"""Faster products are taken only where they are as exact, and only for a while."""

from __future__ import annotations

import sys

import pytest
import torch

from pyro_vae.engine import arithmetic, fast_arithmetic


def test_the_setting_goes_back(monkeypatch):
    before = torch.get_float32_matmul_precision()
    with fast_arithmetic() as taken:
        assert torch.get_float32_matmul_precision() == ("medium" if taken else before)
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), fast_arithmetic():
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_products_inside_are_as_exact_as_float32():
    a, b = torch.randn(200, 700), torch.randn(700, 90)
    exact = a.double() @ b.double()
    outside = (a @ b - exact).abs().max()
    with fast_arithmetic():
        inside = (a @ b - exact).abs().max()
    assert inside < 3 * outside


def test_products_that_are_less_exact_are_not_taken(monkeypatch):
    monkeypatch.setattr(arithmetic, "products_are_float32", lambda: False)
    before = torch.get_float32_matmul_precision()
    with fast_arithmetic() as taken:
        assert not taken
        assert torch.get_float32_matmul_precision() == before


def test_the_probe_sees_lower_precision(monkeypatch):
    assert arithmetic.products_are_float32()
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        if a.dtype == torch.float64:
            return product(a, b)
        return product(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not arithmetic.products_are_float32()


def test_tiny_numbers_are_zero_inside_alone():
    tiny = torch.full((4,), 1e-30)
    assert bool((tiny * 1e-10 > 0).all())
    with fast_arithmetic():
        assert bool((tiny * 1e-10 == 0).all())
    assert bool((tiny * 1e-10 > 0).all())
    torch.set_flush_denormal(True)
    try:
        with fast_arithmetic():
            pass
        assert bool((tiny * 1e-10 == 0).all())
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's pool is GNU's on Linux")
def test_tiny_numbers_are_zero_in_every_thread_of_the_pool():
    tiny = torch.full((1 << 20,), 1e-30)
    torch.set_num_threads(2)  # `clean_slate` sets it to one again
    assert bool((tiny * 1e-10 > 0).all())  # the pool is there before
    with fast_arithmetic():
        assert bool((tiny * 1e-10 == 0).all())
    assert bool((tiny * 1e-10 > 0).all())
