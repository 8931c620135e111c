"""What sites observe is found again in the program's arguments, whatever part of them it is."""

from __future__ import annotations

from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.inference import Probe, Program, ProgramError
from pyro_vae.inference.sites import dreamt, view_of

# What a site is given, of x [N, 4, 6], and how many dimensions stand before the data.
PARTS = {
    "itself": (lambda x: x, 0),
    "flat": (lambda x: x.reshape(len(x), -1), 0),
    "with a channel": (lambda x: x.unsqueeze(1), 0),
    "a column": (lambda x: x[:, 1], 0),
    "every other number": (lambda x: x.flatten(1)[:, 1::2], 0),
    "rows on the left": (lambda x: x.transpose(0, 1), 1),
    "columns on the left": (lambda x: x.permute(2, 0, 1), 1),
    "both on the left": (lambda x: x.permute(2, 1, 0), 2),
}
COMPUTED = {
    "other numbers": lambda x: x + 1,
    "gathered": lambda x: x[:, [2, 0]],
    "backwards": lambda x: x.flip(0),
    "the first row": lambda x: x[:1].expand(len(x), 4, 6),
}
parts = pytest.mark.parametrize(("part", "left"), PARTS.values(), ids=PARTS.keys())


def site_of(part, left: int, x: torch.Tensor):
    value = part(x)
    fn = dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim() - 1 - left)
    return {"value": value, "fn": fn, "infer": {}}


@parts
def test_a_part_of_the_argument_is_known_for_any_number_of_rows(part, left: int) -> None:
    few, many = torch.randn(3, 4, 6), torch.randn(9, 4, 6)
    view = view_of(site_of(part, left, few), (few,))
    assert view is not None
    assert torch.equal(view.of(many), part(many))
    assert torch.equal(view.of(many[2:5]), part(many[2:5]))


@pytest.mark.parametrize("part", COMPUTED.values(), ids=COMPUTED.keys())
def test_what_is_computed_is_no_part(part) -> None:
    x = torch.randn(3, 4, 6)
    assert view_of(site_of(part, 0, x), (x,)) is None


def model_of(part, left: int):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            shape = part(x).shape
            fn = dist.Normal(torch.full(shape, 50.0), 1.0).to_event(len(shape) - 1 - left)
            with ExitStack() as stack:
                for n in range(left):
                    stack.enter_context(pyro.plate(f"p{n}", shape[n], dim=n - 1 - left))
                pyro.sample("y", fn, obs=part(x))

    return model


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


@parts
def test_a_dream_takes_the_place_of_what_was_observed(part, left: int) -> None:
    x = torch.randn(5, 4, 6)
    model = model_of(part, left)
    layout = Probe(Program(model, guide), x).layout
    dream = poutine.trace(poutine.uncondition(model)).get_trace(x)
    (found,) = dreamt(dream, layout, (x,), what="a test", mend="no test")
    assert torch.equal(part(found), dream.nodes["y"]["value"])
    assert found.shape == x.shape
    assert int((found != x).sum()) == part(x).numel()


def test_a_dream_of_what_is_computed_is_refused() -> None:
    x = torch.randn(5, 4, 6)
    model = model_of(lambda x: x.exp(), 0)
    layout = Probe(Program(model, guide), x).layout
    dream = poutine.trace(poutine.uncondition(model)).get_trace(x)
    with pytest.raises(ProgramError, match=r"a test, but .* at 'y' .*obs=x.*or do no test"):
        dreamt(dream, layout, (x,), what="a test", mend="do no test")
