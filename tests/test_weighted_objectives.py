r"""What handlers weigh in every objective of the package, in expectation and to 1e-10.

A weight of w is w copies: of the row where it stands around all of model and guide, of the
observation where it stands around an observed site. The value stays that of no weights at all. What
is held against has no weight in it, and noise is enumerated, of which the laws hold for any nodes.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Bits, Gaussian, distance, exact, expected
from pyro import poutine
from torch import Tensor

from pyro_vae import inference
from pyro_vae.inference import (
    CIWAE,
    DIPVAE,
    ELBO,
    IWAE,
    MIWAE,
    NVIL,
    PIWAE,
    RLOO,
    RWS,
    TVO,
    VIMCO,
    AnalyticELBO,
    BetaTCVAE,
    BetaVAE,
    Capacity,
    DisARM,
    DReG,
    FreeBits,
    InChunks,
    InfoVAE,
    Objective,
    Probe,
    Program,
    Renyi,
    RWSDReG,
    SiteTerms,
    Units,
    score_function,
)
from pyro_vae.inference.weights import DataWeights

few = partial(Gaussian, num_nodes=3)


def nvil() -> NVIL:
    objective = NVIL(num_particles=2)
    objective.baseline.double().center.fill_(-3.0)
    objective.baseline.observe = lambda signal: None  # keeps what it has: no state between runs
    return objective


@dataclass(frozen=True)
class Member:
    """An objective, and a bed on which it works."""

    build: Callable[[], Objective]
    bed: Callable[..., Any] = few


MEMBERS = {
    "ELBO": Member(partial(ELBO, 2)),
    "ELBO, bits": Member(partial(ELBO, 2), Bits),
    "AnalyticELBO": Member(partial(AnalyticELBO, 2)),
    "AnalyticELBO, bits": Member(partial(AnalyticELBO, 2), Bits),
    "IWAE": Member(partial(IWAE, 2)),
    "Renyi": Member(partial(Renyi, 0.5, 2)),
    "MIWAE": Member(partial(MIWAE, 4, 2)),
    "PIWAE": Member(partial(PIWAE, 4, 2)),
    "CIWAE": Member(partial(CIWAE, 0.3, 2)),
    "DReG": Member(partial(DReG, 2)),
    "DReG, 0.5": Member(partial(DReG, 2, alpha=0.5)),
    "RWS": Member(partial(RWS, 2), Bits),
    "RWSDReG": Member(partial(RWSDReG, 2)),
    "TVO": Member(partial(TVO, 2, points=(0.1,)), Bits),
    "RLOO": Member(partial(RLOO, 2), Bits),
    "VIMCO": Member(partial(VIMCO, 2), Bits),
    "NVIL": Member(nvil, Bits),
    "BetaVAE": Member(partial(BetaVAE, 3.0)),
    "Capacity": Member(partial(Capacity, 0.01, 30.0)),
    "FreeBits": Member(partial(FreeBits, 0.01)),
    "FreeBits, units": Member(partial(FreeBits, 0.01, Units())),
}
# Their penalty is of a batch, in which each datum counts once.
OF_A_BATCH = {
    "InfoVAE": Member(InfoVAE),
    "BetaTCVAE": Member(partial(BetaTCVAE, num_data=10_000)),
    "DIPVAE": Member(DIPVAE),
}
# Their noise is not that of the guide's sites alone.
OF_OWN_NOISE = {
    "RWS, sleep": Member(partial(RWS, 2, insomnia=0.4), Bits),
    "DisARM": Member(partial(DisARM, 2), Bits),
    "InChunks": Member(lambda: InChunks(IWAE(4), 2)),
}
# Their value is no bound, or their model follows other latents: they have laws of their own.
ELSEWHERE = {inference.Reconstruction, inference.Refined}
EVERY = MEMBERS | OF_A_BATCH | OF_OWN_NOISE


def table(members: dict[str, Member]) -> Any:
    return pytest.mark.parametrize("member", members.values(), ids=members)


def test_the_table_holds_every_objective() -> None:
    public = [getattr(inference, name) for name in inference.__all__]
    leaves = {c for c in public if inspect.isclass(c) and issubclass(c, Objective)} - {
        Objective,
        inference.Bound,
    }
    assert {type(member.build()) for member in EVERY.values()} == leaves - ELSEWHERE


def of_rows(weights: Tensor, x: Tensor) -> Tensor:
    """Return the weight of each row of a batch that holds the bed's rows over and over."""
    return weights.repeat(len(x) // len(weights) + 1)[: len(x)]


def around(bed: Any, effect: Callable[[Tensor], Any]) -> Any:
    """Put an effect, which may look at the rows, around model and guide."""

    def wrapped(function: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def inner(x: Tensor) -> None:
            with effect(x):
                function(x)

        return inner

    bed.model, bed.guide = wrapped(bed.model), wrapped(bed.guide)
    return bed


def masked(bed: Any, which: Tensor) -> Any:
    """Let some rows' latents and data count nothing, in the model and in the guide."""
    return around(bed, lambda x: poutine.mask(mask=of_rows(which, x)))


def bed_of(member: Member, rows: Sequence[int] = (0, 1, 2), **options: Any) -> Any:
    """Return a member's bed with some of three rows, each as often as it is named."""
    bed = member.bed(**options)
    bed.x = torch.cat([bed.x, bed.x[:1].flip(-1)])[list(rows)]
    return bed


@functools.cache
def bound_of(name: str) -> Tensor:
    """Return the expected value of a member without any weights."""
    return expected(MEMBERS[name].build(), bed_of(MEMBERS[name]))[0]


# ---------------------------------------------------------------- around everything: copies of rows

HALVES = torch.tensor([0.5, 1.5, 0.0]).double()  # of 1, 3 and no copies


def forgetful(objective: Objective) -> Objective:
    """Leave the weights of the data out."""
    surrogate = objective.surrogate
    objective.surrogate = lambda terms: surrogate(replace(terms, weight=1.0))
    return objective


def tempered(objective: Objective) -> Objective:
    """Report what is weighed."""
    value = objective.value

    def weighed(terms: SiteTerms) -> Tensor:
        return value(replace(terms, log_p={n: terms.weight * p for n, p in terms.log_p.items()}))

    objective.value = weighed
    return objective


@pytest.mark.parametrize("name", MEMBERS)
def test_a_weight_of_a_datum_is_so_many_copies_of_it(name: str) -> None:
    member = MEMBERS[name]
    bed = around(bed_of(member), lambda x: DataWeights(of_rows(HALVES, x)))
    copies = expected(member.build(), bed_of(member, (0, 1, 1, 1)))[1]
    per_datum = {key: 0.5 * 4 / 3 * entry for key, entry in copies.items()}
    reference = (bound_of(name), per_datum)
    assert distance(expected(member.build(), bed), reference) < 1e-10
    unweighted = expected(forgetful(member.build()), bed)[1]
    assert distance((bound_of(name), unweighted), reference) > 1e-5
    value, _ = expected(tempered(member.build()), bed)
    assert distance((value, per_datum), reference) > 1e-5


def test_weights_masks_and_subsampled_plates_do_not_disturb_each_other() -> None:
    which, weights = torch.tensor([True, False]), torch.tensor([1.5, 4.0]).double()
    for name in ("ELBO", "IWAE", "RLOO", "Capacity"):
        member = MEMBERS[name]
        num_rows = 2 * member.bed().tuples(2)[0].shape[1]
        plain = masked(member.bed(full_size=10 * num_rows), which)
        value, gradient = expected(member.build(), masked(member.bed(), which))
        weighed = around(plain, lambda x: poutine.scale(scale=of_rows(weights, x)))
        found = expected(member.build(), weighed)
        if name == "Capacity":
            assert distance(found, (value, found[1])) < 1e-10
            continue
        # The second row is masked, so its weight multiplies nothing.
        reference = (value, {key: 15 * entry for key, entry in gradient.items()})
        assert distance(found, reference) < 1e-9


@table(EVERY)
def test_a_number_around_everything_multiplies_the_gradient_alone(member: Member) -> None:
    results = []
    for factor in (1.0, 0.3):
        bed = member.bed()
        if factor != 1:
            around(bed, lambda x: poutine.scale(scale=0.3))
        torch.manual_seed(0)
        loss = member.build().differentiable_loss(bed.model, bed.guide, bed.x)
        slopes = torch.autograd.grad(loss, list(bed.parameters()), allow_unused=True)
        results.append((loss.item(), [factor * 0.0 if s is None else s / factor for s in slopes]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    for plain, scaled in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-10, atol=1e-12)


@table(OF_A_BATCH | OF_OWN_NOISE)
def test_the_value_is_that_of_no_weights(member: Member) -> None:
    values = []
    for scale in (None, HALVES):
        bed = member.bed()
        if scale is not None:
            around(bed, lambda x: poutine.scale(scale=of_rows(HALVES[:2], x)))
        torch.manual_seed(0)
        values.append(member.build().loss(bed.model, bed.guide, bed.x))
    assert values[1] == pytest.approx(values[0], rel=1e-12)


def test_disarm_weighs_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    half = torch.rand(1, 2, 3, dtype=torch.float64)

    def gradient(bed: Any, rows: list[int]) -> Any:
        def uniform(self: Any, msg: Any, like: Tensor) -> Tensor:
            drawn = torch.cat([half, 1 - half])[:, rows]
            return drawn if like.shape == drawn.shape else torch.rand_like(like)

        monkeypatch.setattr(score_function._AntitheticPairs, "_uniform", uniform)
        program, x, objective = Program(bed.model, bed.guide), bed.x[rows], DisARM(2)
        layout = Probe(program, x).layout
        with program.running():
            total = objective.surrogate(objective.table(program, layout, x)).sum()
        return torch.autograd.grad(total, [getattr(bed, n) for n in bed.of_guide + bed.of_model])

    weighed = around(Bits(), lambda x: poutine.scale(scale=of_rows(HALVES[:2], x)))
    found, copies = gradient(weighed, [0, 1]), gradient(Bits(), [0, 1, 1, 1])
    torch.testing.assert_close(found, tuple(g / 2 for g in copies), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------ around an observed site: copies of it


def two_sites(bed: Any, *, order: str, weighed: str, by: Tensor, copied: bool = False) -> Any:
    """Let the model observe its numbers at two sites, x and y, and weigh one or observe it anew.

    Args:
        bed: A ``Gaussian`` or ``Bits``.
        order: The sites as they are declared.
        weighed: Which of them counts more.
        by: So many times, by row; integers where it is copied.
        copied: Whether as that many sites.
    """

    def observe(name: str, values: Tensor, fn: Any, x: Tensor) -> None:
        if name != weighed:
            pyro.sample(name, fn.to_event(1), obs=values)
        elif not copied:
            with DataWeights(of_rows(by, x)):  # unlike Pyro's, with zeros
                pyro.sample(name, fn.to_event(1), obs=values)
        else:
            for copy in range(int(by.max())):
                with poutine.mask(mask=of_rows(by > copy, x)):
                    pyro.sample(f"{name}{copy}", fn.to_event(1), obs=values)

    def model(x: Tensor) -> None:
        zeros = torch.zeros(bed.num_dims, dtype=x.dtype)
        normal = isinstance(bed, Gaussian)
        prior = dist.Normal(zeros, 1.0) if normal else dist.Bernoulli(logits=bed.r)
        with bed.plate(x):
            z = pyro.sample("z", prior.to_event(1))
            raw = z @ bed.w + bed.b
            for name in order:
                part = slice(0, 1) if name == "x" else slice(1, None)
                some = raw[..., part]
                fn = dist.Normal(some, 0.9) if normal else dist.Bernoulli(logits=some)
                observe(name, x[..., part], fn, x)

    bed.model = model
    return bed


def blind(objective: Objective) -> Objective:
    """Leave the weights of the sites out."""
    surrogate = objective.surrogate

    def unweighted(terms: SiteTerms) -> Tensor:
        return surrogate(replace(terms, scale_p=dict.fromkeys(terms.scale_p, 1.0)))

    objective.surrogate = unweighted
    return objective


@pytest.mark.parametrize("name", MEMBERS)
def test_a_weight_of_an_observed_site_is_so_many_copies_of_it(name: str) -> None:
    member, by = MEMBERS[name], torch.tensor([1.0, 3.0, 0.0]).double()
    copied = two_sites(bed_of(member), order="xy", weighed="x", by=by, copied=True)
    reference = (bound_of(name), expected(member.build(), copied)[1])
    for order in ("xy", "yx"):
        bed = two_sites(bed_of(member), order=order, weighed="x", by=by)
        assert distance(expected(member.build(), bed), reference) < 1e-10
    assert distance(expected(blind(member.build()), bed), reference) > 1e-5


# ----------------------------------------------------------------------------------- closed forms


def mean(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


def log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


CLOSED = {
    "ELBO": (Member(partial(ELBO, 2), Gaussian), mean),
    "AnalyticELBO": (Member(AnalyticELBO, Gaussian), mean),
    "IWAE": (Member(partial(IWAE, 2), Gaussian), log_mean),
    "DReG": (Member(partial(DReG, 2), Gaussian), log_mean),
    "RLOO": (Member(partial(RLOO, 2), Bits), mean),
    "VIMCO": (Member(partial(VIMCO, 2), Bits), log_mean),
}


@pytest.mark.parametrize("name", CLOSED)
def test_weights_of_data_and_of_the_likelihood_have_their_closed_form(name: str) -> None:
    member, bound = CLOSED[name]
    weights, temper = torch.tensor([0.3, 2.2], dtype=torch.float64), 0.7
    bed, objective = member.bed(), member.build()
    value, _ = exact(bed, objective.num_particles, bound)
    noise, weigh = bed.tuples(objective.num_particles)
    z = bed.draw(noise, bed.x)
    log_q, log_joint = bed.log_q(z, bed.x), bed.log_joint(z, bed.x)
    log_prior = (
        dist.Normal(0.0, 1.0).log_prob(z) if member.bed is Gaussian
        else dist.Bernoulli(logits=bed.r).log_prob(z)
    ).sum(-1)  # fmt: skip
    tempered = temper * (log_joint - log_prior) + log_prior - log_q
    total = (weigh(log_q) * bound(tempered)).sum(0) @ weights / 2
    slopes = torch.autograd.grad(total, list(bed.parameters()))
    reference = (value, dict(zip(dict(bed.named_parameters()), slopes, strict=True)))
    tempers = torch.full((2,), temper, dtype=torch.float64)

    def weighed(by: Tensor) -> Any:
        program = member.bed()
        inner = program.model

        def model(x: Tensor) -> None:
            with _OfObserved(of_rows(tempers, x)):
                inner(x)

        program.model = model
        return around(program, lambda x: poutine.scale(scale=of_rows(by, x)))

    assert distance(expected(objective, weighed(weights)), reference) < 1e-10
    for mutant in (weighed(weights.flip(0)), around(member.bed(), lambda x: nullcontext())):
        assert distance(expected(member.build(), mutant), reference) > 1e-5


class _OfObserved(poutine.messenger.Messenger):
    """Weigh what is observed, from outside of the plate."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.scale
