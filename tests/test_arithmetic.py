"""Faster products are taken only where they are as exact, and only for a while."""

from __future__ import annotations

import sys

import pytest
import torch
from recorded import Small, adam

from pyro_vae import SVI, arithmetic
from pyro_vae.arithmetic import fast_arithmetic, suited_products
from pyro_vae.inference import ELBO


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
    arithmetic._are_float32.cache_clear()
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        if a.dtype == torch.float64:
            return product(a, b)
        return product(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not arithmetic.products_are_float32()
    arithmetic._are_float32.cache_clear()


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


@pytest.mark.parametrize(("largest_product", "threads"), [(2**20, 1), (2**24, 2)])
def test_a_step_takes_the_threads_that_suit_it_and_leaves_the_process_its_own(
    largest_product, threads
):
    torch.set_num_threads(2)  # `clean_slate` sets it to one again
    before = torch.get_float32_matmul_precision()
    with suited_products(largest_product):
        assert torch.get_num_threads() == threads
        assert (torch.get_float32_matmul_precision() != before) <= (threads == 2)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, before)


def test_a_fast_drop_in_counts_products_and_leaves_the_process_its_own():
    torch.set_num_threads(2)
    seen = []

    class Counting(Small):
        def logits(self, z):
            seen.append(torch.get_num_threads())
            return super().logits(z)

    program = Counting()
    svi = SVI(program.model, program.guide, adam, ELBO(), fast=True)
    for _ in range(3):
        svi.step(torch.ones(6, 4))
        assert torch.get_num_threads() == 2
    assert seen[-2:] == [1, 1]
    assert svi._largest_product == 6 * 4 * 4  # the encoder's product, of 4 numbers into 4
