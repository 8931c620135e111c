"""Every family that is offered by name, in whatever role, keeps the laws of a family.

The table is made from what the parts state of themselves, so a new part is in it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae.cli.combinations import small_parts
from pyro_vae.cli.names import by_data
from pyro_vae.components import Conditional, Family

PARTS = small_parts()
FAMILIES = {**PARTS.posteriors, **PARTS.priors, **PARTS.likelihoods}
every_family = pytest.mark.parametrize(
    "name", sorted(FAMILIES.keys() - {"AutoregressiveCodes", "UniformCodes", "VampPrior"})
)

NUMBERS = [-3.7, 1.0, 0.0, 2.2]
# Of each kind of data: what is of the kind, and what is not.
KINDS: dict[str, tuple[list[float], list[float] | None]] = {
    "real numbers": (NUMBERS, [float("nan")] * 4),
    "any kind, as Pyro's distribution says": (NUMBERS, None),
    "bits": ([0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 2.0, 0.0]),
    "counts": ([0.0, 3.0, 5.0, 2.0], [0.0, 3.0, -5.0, 2.0]),
    "levels and categories": ([0.0, 3.0, 5.0, 2.0], [0.5, 3.0, 5.0, 2.0]),
    "images of levels": ([0.0, 3.0, 5.0, 2.0], [0.5, 3.0, 5.0, 2.0]),
    "numbers between 0 and 1": ([0.2, 0.9, 0.5, 0.1], [0.2, 1.9, 0.5, 0.1]),
    "words and sequences": ([2.0, 1.0, 3.0, 0.0], [2.0, 1.5, 3.0, 0.0]),
    "tables": (NUMBERS, None),
    "shares that sum to one": ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.9]),
    "one-hot vectors": ([0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]),
    "directions": ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 1.5]),
}


def built(name: str) -> Family:
    """Build a family over four numbers: in a row, or an image where it takes no other."""
    for shape in ((4,), (1, 2, 2)):
        torch.manual_seed(0)
        with contextlib.suppress(ValueError):
            return FAMILIES[name](shape)
    raise ValueError(f"{name} takes no such shape")


def drawn(distribution: Any) -> Tensor:
    return distribution.rsample() if distribution.has_rsample else distribution.sample()


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, parts in by_data().items() for name in parts]
)
def test_a_likelihood_takes_data_of_the_kind_that_it_states(kind, name):
    distribution = Conditional(built(name))()
    inside, outside = (
        None if each is None else torch.tensor(each).reshape(distribution.event_shape)
        for each in KINDS[kind]
    )
    assert bool(distribution.support.check(inside).all())
    assert bool(distribution.log_prob(inside).isfinite().all())
    if outside is not None:
        assert not bool(distribution.support.check(outside).all())


@every_family
@pytest.mark.parametrize("extreme", [-1e4, 0.0, 1e4])
def test_extreme_raw_numbers_give_finite_draws_densities_and_gradients(name, extreme):
    family = built(name)
    raw = torch.full((2, *family.raw_shape), extreme).requires_grad_()
    distribution = family(raw).expand((2,))
    z = drawn(distribution)
    assert bool(z.isfinite().all())
    log_p = distribution.log_prob(z)
    assert bool(log_p.isfinite().all())
    if log_p.requires_grad:
        log_p.sum().backward()
    for parameter in (raw, *family.parameters()):
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


@every_family
def test_raw_numbers_of_a_datum_are_its_own(name):
    family = built(name).eval()
    raw = torch.randn(3, *family.raw_shape)
    z = family(raw).expand((3,)).sample()
    if name == "Sylvester":
        return
    together = family(raw).log_prob(z)
    for place in range(3):
        alone = family(raw[place]).log_prob(z[place])
        torch.testing.assert_close(together.expand(3)[place], alone, rtol=1e-4, atol=1e-4)


@every_family
def test_raw_numbers_from_data_fit_and_leave_the_data_alone(name):
    family = built(name)
    drawn_data = Conditional(family)().expand((20,)).sample().float()
    before = drawn_data.clone()
    raw = family.raw_from(drawn_data)
    assert torch.equal(drawn_data, before)
    if raw is None:
        return
    assert raw.shape == family.raw_shape
    assert bool(raw.isfinite().all())
    assert bool(family(raw).log_prob(drawn_data).isfinite().all())


@every_family
def test_a_family_needs_its_raw_numbers_unless_it_is_fixed(name):
    family = built(name)
    if family.is_fixed:
        assert family().event_shape == (4,)
        assert Conditional(family)(torch.zeros(3)).event_shape == (4,)
        return
    with pytest.raises(ValueError, match=f"{type(family).__name__} needs its raw parameters"):
        family()
