"""Networks take any image size, any leading dimensions, and treat rows alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import NETWORKS

from pyro_vae.components import MLP, Convolutional, Standardize

networks = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())


@networks
@given(height=st.integers(1, 33), width=st.integers(1, 33), channels=st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_image_size(build, height: int, width: int, channels: int) -> None:
    image = (channels, height, width)
    x = torch.zeros(2, *image)
    assert build(image, (2, 3))(x).shape == (2, 2, 3)
    z = torch.zeros(2, 3)
    assert build((3,), (2, *image))(z).shape == (2, 2, *image)


def test_all_image_sides() -> None:
    for side in range(1, 34):
        up = Convolutional((2,), (1, side, 34 - side), channels=(1, 1, 1), hidden=1)
        assert up(torch.zeros(1, 2)).shape == (1, 1, side, 34 - side)


@networks
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((1, 6, 5), (2, 3)), ((3,), (2, 1, 6, 5))], ids=["down", "up"]
)
def test_leading_dimensions_and_rows(build, batch, in_shape, out_shape) -> None:
    network = build(in_shape, out_shape).double()
    x = torch.randn(*batch, *in_shape).double()
    y = network(x)
    assert y.shape == (*batch, *out_shape)
    rows = torch.stack([network(row) for row in x.reshape(-1, *in_shape)])
    torch.testing.assert_close(y.reshape(-1, *out_shape), rows)
    order = torch.randperm(len(rows))
    torch.testing.assert_close(network(x.reshape(-1, *in_shape)[order]), rows[order])


@networks
@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((1, 6, 5), (2, 3)), ((3,), (2, 1, 6, 5))], ids=["down", "up"]
)
def test_every_output_depends_on_every_input_of_a_small_image(build, in_shape, out_shape) -> None:
    network = build(in_shape, out_shape).double()
    x = torch.randn(in_shape).double()
    jacobian = torch.autograd.functional.jacobian(network, x)
    assert bool((jacobian != 0).any(-1).any(-1).all() if x.dim() > 1 else jacobian.any(-1).all())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MLP((3,), (2,), hidden=(4, 0)), r"hidden=\(4, 0\)"),
        (lambda: Convolutional((1, 4, 4), (2,), channels=(-1,)), r"channels=\(-1,\)"),
        (lambda: Convolutional((1, 4, 4), (2,), channels=()), "channels"),
        (lambda: Convolutional((1, 4, 4), (2,), hidden=0), "hidden"),
        (lambda: Convolutional((4,), (2,)), "MLP"),
        (lambda: Convolutional((1, 4, 4), (1, 4, 4)), "vector"),
    ],
)
def test_bad_sizes_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


def test_standardize_centres_and_scales() -> None:
    x = torch.randn(50, 4).double() * 3 + 5
    x[:, 2] = 7.0
    y = Standardize.of(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4).double(), atol=1e-12, rtol=0)
    expected = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()
    torch.testing.assert_close(y.std(0, correction=0), expected)
    images = torch.rand(10, 1, 3, 3).double()
    y = Standardize.of(images)(images)
    assert y.mean().abs() < 1e-12
    assert (y.std(correction=0) - 1).abs() < 1e-12
