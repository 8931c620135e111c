"""Quantised latents: a bound, straight-through gradients, and codebooks that follow the encoder."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from bits import same
from torch.nn import functional

from pyro_vae import evaluation, fit
from pyro_vae.components import (
    MLP,
    AutoregressiveCodes,
    FiniteGrid,
    FiniteScalar,
    LearnedCodebook,
    MovingCodebook,
    NearestCode,
    Normal,
    StandardNormal,
    UniformCodes,
)
from pyro_vae.distributions import CodeVectors, UniformCodeVectors
from pyro_vae.engine.svi import SVI
from pyro_vae.inference import ELBO, IWAE, RLOO, RWS, TVO, VIMCO, AnalyticELBO, DReG, RWSDReG
from pyro_vae.models import VQVAE

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
POSTERIORS: dict[str, Any] = {
    "moving": partial(NearestCode, num_codes=5),
    "learned": partial(NearestCode, num_codes=5, commitment=0.4, codebook=LearnedCodebook),
    "finite": partial(FiniteScalar, levels=[2, 3]),
}


def quantized(posterior: Any, dtype: torch.dtype = torch.float32, **parts: Any) -> VQVAE:
    torch.manual_seed(1)
    built = VQVAE.assemble(
        (3,), (2, 3), posterior=posterior, likelihood=partial(Normal, scale=1.0),
        network=partial(MLP, hidden=(6,)), **parts,
    )  # fmt: skip
    return built.to(dtype)


# The bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_bound_is_one_term_of_the_marginal_that_is_summed_over_all_codes(name: str) -> None:
    program = quantized(POSTERIORS[name], torch.float64)
    x, codes = X[:4].double(), program.posterior.family.codes
    program.eval()
    terms = []
    for chosen in itertools.product(range(codes.num_codes), repeat=3):
        z = codes.vectors(torch.tensor(chosen)).T  # [D, M]
        log_p = program.likelihood(z.expand(4, 2, 3)).log_prob(x)
        terms.append(log_p - 3 * math.log(codes.num_codes))
    log_marginal = torch.stack(terms).logsumexp(0)
    own = evaluation.code_indices(program, x)["z"]
    index = (own * codes.num_codes ** torch.tensor([2, 1, 0])).sum(-1)
    expected = torch.stack(terms)[index, torch.arange(4)]
    for objective in (ELBO(), IWAE(3), AnalyticELBO()):
        loss = objective.loss(program.model, program.guide, x)
        assert loss == pytest.approx(-expected.sum().item(), abs=1e-9)
    assert (expected < log_marginal).all()
    found = evaluation.elbo(program, x)
    assert float(found.rate_nats) == pytest.approx(3 * math.log(codes.num_codes))


def test_a_distribution_over_codes_sums_to_one_and_draws_what_it_scores() -> None:
    codes = FiniteGrid([2, 3])
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(3)).double()
    fn = CodeVectors(dist.Categorical(logits=logits).to_event(1), codes, 2)
    grids = torch.tensor([*itertools.product(range(6), repeat=2)])
    values = codes.vectors(grids).movedim(-1, 1)
    log_p = fn.log_prob(values)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    expected = logits.log_softmax(-1).gather(-1, grids.T).sum(0)
    torch.testing.assert_close(log_p, expected)
    torch.manual_seed(0)
    drawn = fn.sample((2000,))
    assert drawn.shape == (2000, 2, 2)
    assert fn.support.check(drawn).all()
    assert not fn.support.check(drawn + 0.3).any()
    uniform = UniformCodeVectors(dist.Categorical(torch.ones(2, 6)).to_event(1), codes, 2)
    assert uniform.log_prob(values).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_an_autoregressive_prior_sums_to_one_over_the_codes_of_the_posterior() -> None:
    prior = partial(AutoregressiveCodes, width=4, num_heads=2, num_layers=1)
    program = quantized(POSTERIORS["finite"], torch.float64, prior=prior)
    for parameter in program.prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    codes = program.posterior.family.codes
    grids = torch.tensor([*itertools.product(range(codes.num_codes), repeat=3)])
    values = codes.vectors(grids).movedim(-1, 1)
    log_p = program.prior().log_prob(values)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    assert log_p.std() > 0.1, "it is not uniform"
    assert program.prior().support.check(program.prior().sample((20,))).all()


def test_a_code_is_scored_as_it_was_when_it_was_drawn() -> None:
    prior = partial(AutoregressiveCodes, width=4, num_heads=2, num_layers=1)
    program = quantized(POSTERIORS["moving"], torch.float64, prior=prior)
    value = program.posterior(X.double()).rsample()
    expected = program.prior().log_prob(value)
    codes = program.posterior.family.codes
    codes.embedding.copy_(codes.embedding.flip(0))
    assert torch.equal(program.prior().log_prob(value), expected)


@pytest.mark.parametrize("levels", [[2], [3, 4], [5, 2, 3]])
def test_a_finite_grid_has_each_code_once_and_finds_it_again(levels: list[int]) -> None:
    codes = FiniteGrid(levels)
    indices = torch.arange(codes.num_codes)
    vectors = codes.vectors(indices)
    assert codes.num_codes == math.prod(levels) == len(vectors.unique(dim=0))
    assert torch.equal(codes.nearest(vectors), indices)
    assert torch.equal(codes.nearest(vectors + 0.4 * (torch.rand_like(vectors) - 0.5)
                                     / (codes.steps)), indices)  # fmt: skip
    distances = torch.cdist(torch.rand(50, len(levels)) * 2 - 1, vectors)
    assert distances.min(1).values.max() <= math.sqrt(len(levels)) / (min(levels) - 1) + 1e-6


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["learned", "finite"])
def test_gradients_are_those_of_the_written_out_loss(name: str) -> None:
    program = quantized(POSTERIORS[name], torch.float64)
    x = X.double()
    ELBO().loss_and_grads(program.model, program.guide, x)
    found = {n: p.grad for n, p in program.named_parameters() if p.grad is not None}

    conditional, codes = program.posterior, program.posterior.family.codes
    vectors = (conditional.offset + conditional.network(x)).squeeze(1).movedim(1, -1)
    cost = torch.zeros((), dtype=torch.float64)
    if name == "finite":
        vectors = vectors.tanh()
    table = codes.vectors(torch.arange(codes.num_codes))
    index = torch.cdist(vectors, table).argmin(-1)
    code = table[index]
    if name == "learned":
        cost = 0.4 * (vectors - code.detach()).square().sum()
        cost = cost + (vectors.detach() - code).square().sum()
    z = (vectors + (code - vectors).detach()).movedim(-1, 1)
    log_p = program.likelihood(z).log_prob(x).sum()
    parameters = dict(program.named_parameters())
    expected = torch.autograd.grad(cost - log_p, [parameters[n] for n in found])
    assert "posterior.family.codes.embedding" in found or name == "finite"
    for gradient, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-9)


def test_the_value_that_is_decoded_is_the_code_to_the_bit() -> None:
    program = quantized(POSTERIORS["moving"]).eval()
    with torch.no_grad():
        value = program.posterior(X).sample()
    codes = program.posterior.family.codes
    vectors = value.movedim(1, -1)
    assert torch.equal(codes.vectors(codes.nearest(vectors)), vectors)


# Codebooks ----------------------------------------------------------------------------------------


def test_a_moving_codebook_follows_its_formula_and_starts_dead_codes_anew() -> None:
    codes = MovingCodebook(3, 2, decay=0.9).double()
    counts, sums = torch.tensor([4.0, 4.0, 0.01]), torch.randn(3, 2).double()
    codes.counts.copy_(counts)
    codes.sums.copy_(sums)
    vectors, indices = torch.randn(12, 2).double(), torch.tensor([0, 1] * 6)
    codes.train()
    codes.follow(vectors, indices)
    hot = functional.one_hot(indices, 3).double()
    new_counts = 0.9 * counts.double() + 0.1 * hot.sum(0)
    new_sums = 0.9 * sums + 0.1 * hot.T @ vectors
    torch.testing.assert_close(codes.counts[:2], new_counts[:2])
    torch.testing.assert_close(codes.embedding[:2], (new_sums / new_counts[:, None])[:2])
    assert (vectors == codes.embedding[2]).all(1).any(), "a dead code is one of the batch"
    assert codes.counts[2] == 4.0
    before = codes.embedding.clone()
    codes.eval()
    codes.follow(vectors, indices)
    assert torch.equal(before, codes.embedding)


@pytest.mark.parametrize(
    "name",
    [
        "moving",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("learned", "finite", "autoregressive")),
    ],
)
def test_recorded_steps_have_the_bits_of_eager_ones_buffers_included(name: str) -> None:
    found = {}
    prior = partial(AutoregressiveCodes, width=4, num_heads=2, num_layers=1)
    parts = {"prior": prior} if name == "autoregressive" else {}
    for engine in ("eager", "recorded"):
        program = quantized(POSTERIORS.get(name, POSTERIORS["moving"]), **parts)
        fit(program, X, epochs=2, batch_size=6, progress=False, engine=engine)
        found[engine] = {n: t.detach().clone() for n, t in program.state_dict().items()}
    for key, tensor in found["eager"].items():
        assert same(tensor, found["recorded"][key]), key


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    from pyro_vae.engine.callbacks import Callback

    class Stop(Exception):
        pass

    class After(Callback):
        def epoch(self, run: Any, record: Any) -> None:
            if record["epoch"] == 2:
                raise Stop

    whole, parted = (quantized(POSTERIORS["moving"]) for _ in range(2))
    options: dict[str, Any] = {"epochs": 3, "batch_size": 6, "progress": False}
    fit(whole, X, **options, out=tmp_path / "whole")
    with pytest.raises(Stop):
        fit(parted, X, **options, out=tmp_path / "parted", checkpoint_seconds=0.0,
            callbacks=[After()])  # fmt: skip
    fit(parted, X, **options, out=tmp_path / "parted", resume=True)
    for one, other in zip(whole.state_dict().values(), parted.state_dict().values(), strict=True):
        assert same(one, other)


@pytest.mark.slow
def test_all_codes_come_into_use_where_the_data_have_as_many_kinds() -> None:
    kinds = torch.randn(6, 3, generator=torch.Generator().manual_seed(4)) * 4
    x = kinds[torch.arange(120) % 6] + 0.05 * torch.randn(120, 3)
    torch.manual_seed(0)
    program = VQVAE.assemble(
        (3,), (4,), likelihood=Normal, network=partial(MLP, hidden=(16,)), data=x,
        posterior=partial(NearestCode, num_codes=8, codebook=partial(MovingCodebook, decay=0.9)),
    )  # fmt: skip
    fit(program, x, epochs=60, batch_size=20, progress=False)
    usage = evaluation.code_usage(program, x)["z"]
    assert usage.num_used >= 6
    assert usage.counts.sum() == 120
    shares = usage.counts.double()[usage.counts > 0] / 120
    assert usage.perplexity == pytest.approx(math.exp(-(shares * shares.log()).sum().item()))


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NearestCode((4,), num_codes=1), "num_codes=1: a codebook has two"),
        (lambda: NearestCode((4,), commitment=-1.0), "commitment=-1.0"),
        (lambda: MovingCodebook(4, 2, decay=1.0), r"decay=1.0: .* in \[0, 1\)"),
        (lambda: FiniteScalar((3, 4), levels=[8, 8]), "quantise 2 numbers, and a vector .* has 3"),
        (lambda: FiniteScalar((2,), levels=1), "a number has two levels or more"),
        (lambda: FiniteScalar((20,), levels=8), "codes are too many"),
        (lambda: UniformCodes((4,))(), "UniformCodes has not met the posterior"),
        (lambda: VQVAE.assemble((3,), posterior=NearestCode, data=X[:2]),
         "a codebook of 512 codes is larger than the 16 vectors"),
        (lambda: VQVAE.assemble((3,), (4,), posterior=StandardNormal), "StandardNormal"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_density_over_codes_and_a_prior_without_codes_are_refused() -> None:
    program = quantized(POSTERIORS["moving"], prior=StandardNormal)
    with pytest.raises(ValueError, match=r"whose values a.*UniformCodes with .*NearestCode"):
        fit(program, X, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"no latent of the program is quantised"):
        evaluation.code_usage(quantized(StandardLatent, prior=StandardNormal), X)


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(2), DReG(2), RWSDReG(2), VIMCO(2), RLOO(2)])
def test_every_objective_that_takes_codes_trains_the_encoder_by_the_reconstruction(
    objective: Any,
) -> None:
    program = quantized(partial(NearestCode, num_codes=5, commitment=0.0))
    objective.loss_and_grads(program.model, program.guide, X)
    (layer, *_) = program.posterior.network.parameters()
    assert layer.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", [RWS(2), TVO(2)])
def test_objectives_that_train_a_guide_by_its_density_refuse_codes(objective: Any) -> None:
    program = quantized(POSTERIORS["moving"])
    with pytest.raises(ValueError, match=r"trains the guide by its log q.*site 'z'.*use ELBO"):
        fit(program, X, objective=objective, epochs=1, progress=False)
    with pytest.raises(ValueError, match="trains the guide by its log q"):
        SVI(program.model, program.guide, torch.optim.Adam, objective).step(X)


class StandardLatent(NearestCode):
    """A posterior without a codebook, of the same shape."""

    def __init__(self, event_shape: Any) -> None:
        super().__init__(event_shape, num_codes=2)

    def forward(self, raw: Any) -> Any:
        return dist.Normal(raw.squeeze(-3), 1.0).to_event(2)
