"""The support check looks at what each site observes, over all rows, under the rows' own names."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import sites
import torch

from pyro_vae import fit
from pyro_vae.datasets import Data, Dataset, from_arrays
from pyro_vae.inference import Probe, Program, check_support
from pyro_vae.inference import support as support_module
from pyro_vae.inference.support import Part

NUM = 200  # more than the rows that are looked at first


def mixed(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bits = (torch.rand(NUM, 2, generator=generator) < 0.5).float()
    return torch.cat([bits, torch.randn(NUM, 1, generator=generator)], 1)


def with_value(x: torch.Tensor, *place: int, value: float) -> torch.Tensor:
    x = x.clone()
    x[place] = value
    return x


def missing() -> torch.Tensor:
    return with_value(torch.randn(NUM, 3), 5, 1, value=torch.nan)


def counts(*shape: int) -> torch.Tensor:
    return torch.randint(0, 9, shape).float()


def nan_to_num(x: torch.Tensor) -> torch.Tensor:
    return x.nan_to_num()


INNER = {
    f"{family.__name__} in {number} plates": (
        lambda number=number, family=family: sites.Program(sites.rows_of(number, family), (4, 5)),
        lambda: counts(NUM, 4, 5),
    )
    for number in (1, 2)
    for family in (sites.poisson, sites.binomial)
}
GOOD = {
    "bits, then real": (lambda: sites.Program(sites.bits_first), mixed),
    "real, then bits": (lambda: sites.Program(sites.real_first), mixed),
    "binarised in the model": (
        lambda: sites.Program(sites.binarised),
        lambda: torch.randint(0, 256, (NUM, 3)).float(),
    ),
    "masked in the model": (lambda: sites.Program(sites.masked, read=nan_to_num), missing),
    "masked rows": (
        lambda: sites.Program(sites.masked_rows),
        lambda: with_value(counts(NUM, 3), 7, 0, value=-1),
    ),
    "log x": (lambda: sites.Program(sites.logarithm), lambda: counts(NUM, 3) + 1),
    "one site a number": (lambda: sites.Program(sites.scalars), lambda: counts(NUM, 3)),
    **INNER,
}
BAD = {
    "bits, then real: bit": ("bits, then real", (172, 0), 0.3, r"'bits' is Bernoulli.*\(172, 0\)"),
    "real, then bits: bit": ("real, then bits", (172, 1), 0.3, r"'bits' is Bernoulli.*\(172, 1\)"),
    "real, then bits: real": ("real, then bits", (9, 2), torch.inf, r"'real'.*inf at .*\(9, 0\)"),
    "log x": ("log x", (133, 2), 0.0, r"'log x'.* is given -inf at index \(133, 2\)"),
    "one site a number": ("one site a number", (140, 2), 0.5, r"'x_2'.*index \(140,\) is 0.5"),
    "Poisson in 1": ("poisson in 1 plates", (150, 3, 1), -2, r"'x' is Poisson.*\(150, 3, 1\)"),
    "Poisson in 2": ("poisson in 2 plates", (150, 3, 1), -2, r"'x' is Poisson.*\(150, 1, 3\)"),
    "Binomial in 1": ("binomial in 1 plates", (2, 0, 4), 21, r"0 to 20, .*\(2, 0, 4\) is 21"),
    "Binomial in 2": ("binomial in 2 plates", (199, 0, 4), 21, r"0 to 20, .*\(199, 4, 0\) is 21"),
}


def checked(program, x: torch.Tensor, **options) -> None:
    pair = Program(program.model, program.guide)
    check_support(Probe(pair, x), x, **options)


@pytest.mark.parametrize("case", GOOD)
def test_data_that_every_site_can_score_pass(case: str) -> None:
    build, data = GOOD[case]
    checked(build(), data())


@pytest.mark.parametrize("chunk", [2**22, 40])
@pytest.mark.parametrize(("case", "place", "value", "said"), BAD.values(), ids=BAD)
def test_one_bad_value_of_any_row_is_named(
    case: str, place, value: float, said: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_module, "_CHUNK_ELEMENTS", chunk)
    build, data = GOOD[case]
    with pytest.raises(ValueError, match=said) as caught:
        checked(build(), with_value(data(), *place, value=value))
    assert "\n" not in str(caught.value)
    assert "sites.py:" in str(caught.value)
    assert "likelihood=" not in str(caught.value)  # the program takes none


def test_bounds_that_differ_by_row_are_each_rows_own() -> None:
    """The largest count is the first column's, and is another one in one row of all."""

    def observe(raw: torch.Tensor, x: torch.Tensor) -> None:
        fn = dist.Binomial(x[:, :1].expand(-1, 2), logits=raw[..., :2])
        pyro.sample("x", fn.to_event(1), obs=x[:, 1:])

    x = torch.tensor([9.0, 3.0, 4.0]).repeat(NUM, 1)
    x[NUM // 2] = torch.tensor([2.0, 1.0, 2.0])
    checked(sites.Program(observe), x)
    with pytest.raises(ValueError, match=rf"\({NUM // 2}, 0\) is 3"):
        checked(sites.Program(observe), with_value(x, NUM // 2, 1, value=3))


EDGES = {
    "Gamma": (lambda raw: dist.Gamma(raw.exp() + 1, 1.0), 0.0),
    "Beta, 0": (lambda raw: dist.Beta(raw.exp(), raw.exp() + 1), 0.0),
    "Beta, 1": (lambda raw: dist.Beta(raw.exp(), raw.exp() + 1), 1.0),
}


@pytest.mark.parametrize(("family", "edge"), EDGES.values(), ids=EDGES)
def test_an_edge_of_a_closed_support_without_a_density_is_refused(family, edge: float) -> None:
    def observe(raw: torch.Tensor, x: torch.Tensor) -> None:
        pyro.sample("x", family(raw).to_event(1), obs=x)

    x = torch.rand(NUM, 3) * 0.8 + 0.1
    checked(sites.Program(observe), x)
    with pytest.raises(
        ValueError, match=rf"\(120, 1\) is {edge:g}, where its density is not finite"
    ):
        checked(sites.Program(observe), with_value(x, 120, 1, value=edge))


def test_an_edge_with_a_density_passes() -> None:
    def observe(raw: torch.Tensor, x: torch.Tensor) -> None:
        pyro.sample("x", dist.Exponential(raw.exp()).to_event(1), obs=x)

    checked(sites.Program(observe), with_value(torch.rand(NUM, 3), 120, 1, value=0.0))


def test_what_a_mask_cannot_help_is_said() -> None:
    def observe(raw: torch.Tensor, x: torch.Tensor) -> None:
        pyro.sample("x", dist.Normal(raw, 1.0).mask(~x.isnan()).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"mask of site 'x'.*nan at index \(5, 1\).*torch.where"):
        checked(sites.Program(observe, read=nan_to_num), missing())


def test_rows_are_called_what_they_are_in_the_users_array() -> None:
    x = with_value(mixed(), 172, 0, value=0.3)
    rows = torch.tensor([4, 172, 9])
    for part, said in (
        (Part("test", rows), r"index \(172, 0\) \(row 172 of the data, for test\) is 0.3"),
        (Part("test", None, 30), r"index \(31, 0\) \(row 31 of the test data\) is 0.3"),
        (Part(), r"index \(1, 0\) is 0.3"),
    ):
        with pytest.raises(ValueError, match=said):
            checked(sites.Program(sites.bits_first), x[rows], part=part)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_bad_row_of_any_part_is_found_before_training(part: str) -> None:
    x, seen = mixed(), []
    row = int(getattr(from_arrays(x), part).rows[-1])
    bad = with_value(x, row, 1, value=0.3)

    def schedule(done: float) -> float:
        seen.append(done)
        return 1.0

    with pytest.raises(
        ValueError, match=rf"'bits'.*index \({row}, 1\) \(row {row} of the data, for"
    ):
        fit(sites.Program(sites.real_first), bad, epochs=1, schedule=schedule)
    assert not seen


def test_rows_of_parts_given_apart_are_counted_in_their_part() -> None:
    x = mixed()
    bad = with_value(x[:20], 3, 1, value=0.3)
    data = Dataset("mine", Data(x), Data(x[:10]), Data(bad), None)
    with pytest.raises(ValueError, match=r"index \(3, 1\) \(row 3 of the test data\)"):
        fit(sites.Program(sites.bits_first), data, epochs=1)


@pytest.mark.parametrize("case", GOOD)
def test_they_train(case: str) -> None:
    build, data = GOOD[case]
    done = fit(build(), data(), epochs=1, batch_size=64)
    assert np.isfinite(done.history[-1]["validation_elbo_nats"])
