"""PixelCNN against all the images there are, finite changes, and a sampler without a memory."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import scipy.stats
import torch
from recorded import Pair, both
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae.components import (
    MLP,
    Conditional,
    LogisticLevels,
    PixelCNN,
    SoftmaxLevels,
)
from pyro_vae.components.networks.pixelcnn import GatedPixelCNN
from pyro_vae.distributions import DrawingRule
from pyro_vae.inference import ELBO
from pyro_vae.models import VAE

SMALL = {"num_layers": 2, "width": 5, "num_context": 2}
LOGISTIC = partial(LogisticLevels, num_components=2)
# Event shape, largest level, output.
FEW_IMAGES = {
    "2x2 pixels of 2 bits": ((1, 2, 2), 3, SoftmaxLevels),
    "2x2 pixels of 2 bits, logistic": ((2, 2), 3, LOGISTIC),
    "1x2 pixels of 3 bits of colour": ((3, 1, 2), 1, SoftmaxLevels),
    "1x2 pixels of 3 bits of colour, logistic": ((3, 1, 2), 1, LOGISTIC),
}
few_images = pytest.mark.parametrize("name", FEW_IMAGES)


def distribution(event_shape, levels, output, *batch, **options):
    """Return one with weights that are far from small."""
    torch.manual_seed(3)
    family = PixelCNN(event_shape, levels=levels, output=output, **{**SMALL, **options}).double()
    for parameter in family.parameters():
        nn.init.normal_(parameter, std=0.6)
    return family(torch.randn(*batch, *family.raw_shape, dtype=torch.float64))


def every(event_shape, levels):
    """Return all images, ``[(levels + 1)^D, *event_shape]``."""
    pixels = [range(levels + 1)] * math.prod(event_shape)
    return torch.tensor([*itertools.product(*pixels)]).double().reshape(-1, *event_shape)


@few_images
def test_probabilities_sum_to_one_and_draws_have_them(name):
    # A false alarm in 10,000 runs, for each of the two latents.
    num, (event_shape, levels, output) = 4000, FEW_IMAGES[name]
    fn = distribution(event_shape, levels, output, 2)
    images = every(event_shape, levels)
    masses = fn.log_prob(images.unsqueeze(1)).exp()
    torch.testing.assert_close(masses.sum(0), torch.ones(2).double(), rtol=0, atol=1e-10)
    draws = fn.sample((num,))
    assert draws.dtype == torch.float64
    weights = (levels + 1) ** torch.arange(math.prod(event_shape)).flip(0).double()
    for latent in range(2):
        index = (draws[:, latent].flatten(1) @ weights).long()
        found = index.bincount(minlength=len(images)).double()
        expected = num * masses[:, latent].detach()
        rare = expected < 5
        found, expected = (
            torch.cat([each[~rare], each[rare].sum().reshape(1)]) for each in (found, expected)
        )
        assert len(found) > 8
        assert scipy.stats.chisquare(found + 1e-9, expected + 1e-9).pvalue > 1e-4


class Remembered(DrawingRule):
    """Draws as the model says, and remembers what it was asked."""

    def __call__(self, logits):
        self.__dict__.setdefault("asked", []).append(logits.log_softmax(-1))
        return logits


@few_images
def test_the_probability_of_a_draw_is_that_of_its_pixels_one_after_the_other(name):
    event_shape, levels, output = FEW_IMAGES[name]
    fn, rule = distribution(event_shape, levels, output, 6), Remembered()
    draws = fn.drawn_with(rule).sample((3,))
    # In the order of reading, the channels of a pixel together.
    channels_last = draws.reshape(18, -1, *event_shape[-2:]).movedim(1, -1).flatten(1).long()
    steps = torch.stack(rule.asked, 1)
    found = steps.gather(-1, channels_last.unsqueeze(-1)).sum((1, 2)).reshape(3, 6)
    torch.testing.assert_close(found, fn.log_prob(draws), rtol=0, atol=1e-10)


def without_memory(fn, rule):
    """Draw with one pass of the whole network for each number of an image."""
    network, levels, context = fn._network, fn._levels, fn._context
    images = torch.zeros(len(context), levels.num_channels, *context.shape[-2:]).double()
    for row, column in itertools.product(*map(range, context.shape[-2:])):
        for channel in range(levels.num_channels):
            raw = network(2 * images / levels.largest - 1, context)[..., row, column]
            logits = rule(levels.logits(raw, images[:, :channel, row, column]))
            images[:, channel, row, column] = (
                torch.distributions.Categorical(logits=logits).sample().double()
            )
    return images


RULES = {"as it is": DrawingRule(), "greedy": DrawingRule(0.0), "nucleus": DrawingRule(0.8, 0.5)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("event_shape", "output", "kernel"),
    [((2, 4, 5), SoftmaxLevels, 3), ((1, 5, 4), SoftmaxLevels, 5), ((3, 3, 4), LOGISTIC, 3)],
)
def test_a_draw_with_a_memory_is_one_without_bit_for_bit(event_shape, output, kernel, rule):
    fn = distribution(event_shape, 3, output, 7, kernel=kernel).drawn_with(RULES[rule])
    torch.manual_seed(5)
    expected = without_memory(fn, RULES[rule])
    torch.manual_seed(5)
    assert torch.equal(fn.sample(), expected)
    torch.manual_seed(5)
    assert torch.equal(fn.expand([7]).sample(), expected)
    assert torch.equal(fn.sample(), expected) == (rule == "greedy")


@pytest.mark.parametrize(("channels", "output"), [(1, SoftmaxLevels), (3, LOGISTIC)])
def test_a_draw_costs_the_operations_of_one_pass(channels, output):
    family = PixelCNN((channels, 8, 8), levels=1, output=output, **SMALL)
    fn, costs = family(torch.zeros(2, *family.raw_shape)), []
    for run in (fn.sample, partial(fn.log_prob, torch.zeros(2, channels, 8, 8))):
        with FlopCounterMode(display=False) as counted:
            run()
        costs.append(counted.get_total_flops())
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(("kernel", "num_layers"), [(3, 1), (3, 2), (5, 1), (3, 3)])
@torch.no_grad()
def test_a_pixel_sees_all_pixels_before_it_within_reach_and_no_others(kernel, num_layers, in_order):
    """By finite changes: masks A and B, channels in order, and no blind spot."""
    torch.manual_seed(0)
    channels, size = 3, 6
    network = GatedPixelCNN(
        channels, 1, 2 * channels, kernel=kernel, num_layers=num_layers, width=7, in_order=in_order
    ).double()
    assert network.reach == num_layers * (kernel // 2)
    x = torch.randn(channels, size, size).double()
    places = channels * size * size
    moved = x + torch.eye(places).double().reshape(places, *x.shape)
    maps = torch.ones(1 + places, 1, size, size).double()
    out = network(torch.cat([x.unsqueeze(0), moved]), maps)
    change = (out[1:] - out[:1]).abs().unflatten(1, (channels, 2)).sum(2)
    channel, row, column = torch.meshgrid(*map(torch.arange, x.shape), indexing="ij")
    c, i, j = (each.reshape(-1, 1, 1, 1) for each in (channel, row, column))  # what is changed
    above = (row - i >= 1) & (row - i <= network.reach) & ((column - j).abs() <= network.reach)
    left = (row == i) & (column - j >= 1) & (column - j <= network.reach)
    itself = (row == i) & (column == j) & (channel > c) & in_order
    # What is not seen may change by how sums are rounded, which depends on the rows.
    assert torch.equal(change > 1e-12, above | left | itself)


@pytest.mark.parametrize("is_first", [True, False])
@torch.no_grad()
def test_at_its_own_pixel_a_unit_sees_earlier_channels_and_of_type_b_its_own(is_first):
    torch.manual_seed(0)
    network = GatedPixelCNN(3, 1, 6, num_layers=2, width=6).double()
    layer, num = network.layers[0 if is_first else 1], 3 if is_first else 6
    h = torch.randn(num, 1, 1).double()
    moved = torch.cat([h.unsqueeze(0), h + torch.eye(num).double().reshape(num, num, 1, 1)])
    v = torch.zeros_like(moved)
    out = layer(v, moved, torch.ones(1 + num, 1, 1, 1).double())[1].flatten(1)
    out = out if is_first else out - moved.flatten(1)  # what is added
    change = (out[1:] - out[:1]).abs() > 1e-12
    own, other = (torch.arange(size) * 3 // size for size in (6, num))
    expected = other[:, None] < own if is_first else other[:, None] <= own
    assert torch.equal(change, expected)


def test_what_an_image_depends_on_reaches_all_of_it():
    fn = distribution((1, 3, 3), 1, SoftmaxLevels)
    context = torch.randn(1, 2, 3, 3).double()
    whole = fn._network(torch.zeros(1, 1, 3, 3).double(), context)
    for row, column in itertools.product(range(3), range(3)):
        other = context.clone()
        other[..., row, column] += 1
        moved = fn._network(torch.zeros(1, 1, 3, 3).double(), other) != whole
        assert bool(moved[..., row, column].all())


def test_values_and_batches():
    fn = distribution((1, 2, 2), 3, SoftmaxLevels, 2)
    draws = fn.expand([5, 2]).sample((2,))
    assert draws.shape == (2, 5, 2, 1, 2, 2)
    assert bool(fn.support.check(draws).all())
    together = fn.log_prob(draws[0])
    for latent in range(2):
        alone = distribution((1, 2, 2), 3, SoftmaxLevels, 2)
        alone = type(fn)(fn._network, fn._levels, fn._context[latent], fn.event_shape)
        torch.testing.assert_close(together[:, latent], alone.log_prob(draws[0, :, latent]))
    for outside in (draws + 4, draws - 0.5, draws * torch.nan):
        with pytest.raises(ValueError, match="support"):
            fn.log_prob(outside)
        wide = fn.expand([2])  # which checks nothing
        assert bool((wide.log_prob(outside) == -torch.inf).all())
    assert PixelCNN((2, 2), levels=1)(torch.zeros(8, 2, 2)).support.base_constraint is (
        torch.distributions.constraints.boolean
    )


@pytest.mark.parametrize("output", [SoftmaxLevels, LOGISTIC])
def test_training_starts_at_how_often_levels_occur(output):
    torch.manual_seed(0)
    data = torch.tensor([0.0, 0.0, 1.0, 3.0])[torch.randint(0, 4, (300, 2, 3, 3))]
    data[:, 1] = 3.0
    part = Conditional(PixelCNN((2, 3, 3), levels=3, output=output, **SMALL))
    part.family.network.last.convolution.weight.data.zero_()
    part.adapt_outputs(data)
    means = part().expand([400]).sample().mean((0, 2, 3))
    # Within 7 standard errors of the means of 3,600 draws; logistics start at the mean alone.
    assert means[0] == pytest.approx(1.0, abs=0.15 if output is SoftmaxLevels else 0.4)
    assert means[1] > 2.4
    assert not part.is_new


def test_a_recorded_step_gives_the_bits_of_the_eager_one():
    x = torch.randint(0, 4, (4, 2, 3, 3)).float()

    def build():
        torch.manual_seed(0)
        likelihood = partial(PixelCNN, levels=3, **SMALL)
        vae = VAE.assemble(
            (2, 3, 3), (2,), likelihood=likelihood, network=partial(MLP, hidden=(3,)), data=x
        )
        return Pair(vae.model, vae.guide, (x,))

    found = both(build, ELBO, sizes=[4] * 3)
    assert found.replayed == [False, True, True]


@pytest.mark.parametrize(
    ("event_shape", "arguments", "said"),
    [
        ((784,), {}, r"PixelCNN over event_shape=\(784,\): its events are images"),
        ((1, 4, 4), {"levels": 0}, "levels=0: the largest value is 1 or more"),
        ((1, 4, 4), {"levels": 256}, "levels=256: a PixelCNN has pixels of 1 to 8 bits"),
        ((1, 4, 4), {"kernel": 4}, "kernel=4: give an odd number from 3 on"),
        ((1, 4, 4), {"kernel": 1}, "kernel=1: give an odd number from 3 on"),
        ((1, 4, 4), {"num_layers": 0}, "num_layers=0"),
        ((3, 4, 4), {"width": 2}, "width=2: give 3 units or more, one for each channel"),
        ((1, 4, 4), {"num_context": 0}, "num_context=0"),
        ((1, 4, 4), {"output": partial(LogisticLevels, num_components=0)}, "num_components=0"),
    ],
)
def test_bad_arguments_say_which(event_shape, arguments, said):
    with pytest.raises(ValueError, match=said):
        PixelCNN(event_shape, **arguments)
