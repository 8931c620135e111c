"""Codebooks and finite grids against vector-quantize-pytorch (Wang, 2020-2026), another library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ, VectorQuantize

from pyro_vae.components import FiniteGrid, MovingCodebook, NearestCode
from pyro_vae.inference.auxiliary import AuxiliaryLosses

K, D, N = 6, 3, 40


def theirs(codes: MovingCodebook, decay: float) -> VectorQuantize:
    other = VectorQuantize(
        dim=D, codebook_size=K, decay=decay, commitment_weight=0.25, eps=1e-12,
        threshold_ema_dead_code=0, kmeans_init=False,
        rotation_trick=False,
    )  # fmt: skip
    book = other._codebook
    for name, ours in (("embed", codes.embedding), ("embed_avg", codes.sums)):
        getattr(book, name).data.copy_(ours.unsqueeze(0))
    book.cluster_size.data.copy_(codes.counts.unsqueeze(0))
    book.initted.data.fill_(True)
    return other


@pytest.fixture
def family() -> NearestCode:
    torch.manual_seed(0)
    found = NearestCode((D,), num_codes=K)
    found.codes = MovingCodebook(K, D, decay=0.9)
    found.codes.counts.fill_(N / K)
    found.codes.sums.copy_(found.codes.embedding * N / K)
    return found


def test_codes_commitment_and_moving_averages_are_theirs(family: NearestCode) -> None:
    other = theirs(family.codes, 0.9)
    raw = torch.randn(N, 1, D, requires_grad=True)
    same = raw.detach().clone().requires_grad_()
    family.train()
    with AuxiliaryLosses() as losses:
        value = family(raw).rsample()
    other.train()
    quantized, indices, loss = other(same.squeeze(1).unsqueeze(0))
    torch.testing.assert_close(value, quantized.squeeze(0))
    assert torch.equal(value.indices_of_codes, indices.squeeze(0))
    # Theirs is the mean over all numbers, ours the sum over those of a datum.
    commitment = losses.declared["commitment"][0]
    torch.testing.assert_close(commitment.mean() / D, loss.squeeze())
    weights = torch.randn(N, D)
    ours = gradient(commitment.mean() / D + (weights * value).sum(), raw)
    expected = gradient(loss.sum() + (weights * quantized.squeeze(0)).sum(), same)
    torch.testing.assert_close(ours, expected)
    book = other._codebook
    torch.testing.assert_close(family.codes.counts, book.cluster_size.squeeze(0))
    torch.testing.assert_close(family.codes.sums, book.embed_avg.squeeze(0))
    torch.testing.assert_close(family.codes.embedding, book.embed.squeeze(0))


def test_odd_levels_are_theirs() -> None:
    # Of an even number of levels theirs are shifted, ours have both ends.
    grid, other = FiniteGrid([5, 3, 7]), FSQ([5, 3, 7])
    raw = torch.randn(200, 3)
    code = grid.vectors(grid.nearest(grid.bounded(raw)))
    quantized, indices = other(raw.unsqueeze(0))
    agree = (code - quantized.squeeze(0)).abs().amax(-1) < 1e-5
    assert agree.float().mean() > 0.98, "their bound is wider by a thousandth"
    assert torch.equal(grid.nearest(code)[agree], indices.squeeze(0)[agree].long())


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of)
    return found
