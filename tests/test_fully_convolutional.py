"""A network between an image and a grid: shapes, what a place sees, and sizes that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import jacrev

from pyro_vae.components import FullyConvolutional

SHAPES = [
    ((3, 8, 8), (1, 5, 2, 2)),
    ((5, 2, 2), (2, 3, 8, 8)),
    ((2, 6, 4), (3, 3, 2)),
    ((4, 3, 3), (1, 2, 3, 3)),
]


@pytest.mark.parametrize(("in_shape", "out_shape"), SHAPES)
def test_leading_dimensions_come_back_and_every_parameter_has_a_gradient(
    in_shape: Any, out_shape: Any
) -> None:
    network = FullyConvolutional(in_shape, out_shape, channels=4, num_blocks=1)
    x = torch.randn(2, 3, *in_shape)
    found = network(x)
    assert found.shape == (2, 3, *out_shape)
    torch.testing.assert_close(found[1, 2], network(x[1, 2]), rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in network.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in network.parameters())


def test_a_place_of_the_grid_sees_its_part_of_the_image() -> None:
    network = FullyConvolutional((1, 32, 32), (1, 2, 8, 8), channels=3, num_blocks=1).double()
    x = torch.randn(1, 32, 32, dtype=torch.float64)
    slope = jacrev(lambda image: network(image)[0, 0, 4, 4])(x)[0] != 0
    rows = slope.any(1).nonzero()
    assert slope[16:20, 16:20].all()
    assert rows.max() - rows.min() < 31, "not the whole image"


@pytest.mark.parametrize(
    ("in_shape", "out_shape", "message"),
    [
        ((3, 30, 32), (4, 8, 8), "1, 2, 4, 8, ... times as high and wide"),
        ((3, 32, 32), (40,), "both are to be images"),
        ((1, 4, 8), (1, 8, 4), "times as high and wide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(in_shape: Any, out_shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        FullyConvolutional(in_shape, out_shape)
