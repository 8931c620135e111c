"""Sequences of symbols, each given those before it, held against all the sequences there are."""

from __future__ import annotations

import itertools
from functools import partial

import pyro
import pytest
import torch
from laws import Pair, kolmogorov_bound
from recorded import both
from torch import nn

from pyro_vae import evaluation
from pyro_vae.components import AutoregressiveSequence, MaskingNoise, Recurrent, WordDropout
from pyro_vae.components.networks import Causal, CausalRecurrent, CausalTransformer
from pyro_vae.components.noises import GaussianNoise
from pyro_vae.distributions import AutoregressiveSequence as Sequence
from pyro_vae.distributions import DrawingRule
from pyro_vae.inference import ELBO, CorruptedInputs, Program
from pyro_vae.models import VAE

K, L, CONTEXT = 3, 4, 2
NETWORKS = {
    "GRU": partial(CausalRecurrent, hidden=4, embedding=3),
    "transformer": partial(CausalTransformer, width=4, num_heads=2, num_layers=1),
}


def every(num_categories=K, length=L):
    return torch.tensor([*itertools.product(range(num_categories), repeat=length)]).double()


def network(name, length=L):
    """Return one with weights that are far from small."""
    torch.manual_seed(2)
    built = NETWORKS[name](K, length, CONTEXT).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.6)
    return built


def distribution(name, *, padding=0, batch=(2,), length=L, causal=None):
    built = network(name, length) if causal is None else causal
    torch.manual_seed(5)
    context = torch.randn(*batch, CONTEXT, dtype=torch.float64)
    return Sequence(built, context, length=length, num_categories=K, padding=padding)


def sequences(fn):
    x = every()
    return x[fn.support.check(x)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("padding", [0, 2])
def test_probabilities_sum_to_one_and_draws_have_them(name, padding):
    # A false alarm in 10,000 runs.
    num, fn = 4000, distribution(name, padding=padding)
    x = sequences(fn)
    assert len(x) == sum(2**t for t in range(L + 1))
    masses = fn.log_prob(x.unsqueeze(1)).exp()
    torch.testing.assert_close(masses.sum(0), torch.ones(2).double(), rtol=0, atol=1e-10)
    draws = fn.sample((num,))
    assert draws.dtype == torch.float64
    assert bool(fn.support.check(draws).all())
    shares = (draws.unsqueeze(2) == x).all(-1).double().mean(0)
    bound = kolmogorov_bound(num, false_alarm=1e-4)
    assert (shares.cumsum(1) - masses.T.cumsum(1)).abs().max() < bound
    unchecked = Sequence(fn.network, fn.context, length=L, num_categories=K, padding=padding,
                         validate_args=False)  # fmt: skip
    outside = every()[~fn.support.check(every())].unsqueeze(1)
    assert bool((unchecked.log_prob(outside) == -torch.inf).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_probability_is_the_sum_of_the_conditionals_of_its_steps(name):
    fn = distribution(name)
    x = fn.sample()
    state, symbol, total = fn.network.start(2, fn.context), None, torch.zeros(2).double()
    is_open = torch.ones(2, dtype=torch.bool)
    for place in range(L):
        logits, state = fn.network.step(symbol, state)
        symbol = x[:, place].long()
        found = logits.log_softmax(-1).gather(1, symbol[:, None]).squeeze(1)
        total = total + torch.where(is_open, found, 0.0)
        is_open = is_open & (symbol != 0)
    torch.testing.assert_close(fn.log_prob(x), total, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_place_sees_itself_or_a_later_one(name):
    causal = network(name)
    context = torch.randn(1, CONTEXT, dtype=torch.float64)
    one = torch.tensor([[0, 1, 0]])
    whole = causal(one, context)
    for place in range(L - 1):
        other = one.clone()
        other[:, place:] = 2
        moved = causal(other, context)
        torch.testing.assert_close(moved[:, : place + 1], whole[:, : place + 1])
        assert not torch.allclose(moved[:, place + 1 :], whole[:, place + 1 :])
    assert not torch.allclose(causal(one, context + 1)[:, 0], whole[:, 0])


class Uncached(Causal):
    """The same network, run on all that is before at every step."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal

    def start(self, num_rows, context=None):
        return torch.zeros(num_rows, 0, dtype=torch.long), context

    def step(self, symbol, state):
        seen, context = state
        seen = seen if symbol is None else torch.cat([seen, symbol[:, None]], 1)
        return self.causal(seen, context)[:, -1], (seen, context)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cached_draw_is_the_uncached_one_to_the_bit(name):
    cached = distribution(name, batch=(3,))
    uncached = distribution(name, batch=(3,), causal=Uncached(cached.network))
    drawn = []
    for fn in (cached, uncached):
        torch.manual_seed(1)
        drawn.append(fn.sample((50,)))
    assert torch.equal(*drawn)
    assert len(drawn[0].flatten(0, 1).unique(dim=0)) > 5


def test_padding_changes_nothing():
    short = distribution("GRU")
    long = distribution("GRU", length=L + 3, causal=short.network)
    x = sequences(short)
    x = x[x[:, -1] == 0]  # of the others, an end is told by the longer alone
    padded = torch.cat([x, torch.zeros(len(x), 3)], 1)
    torch.testing.assert_close(long.log_prob(padded[:, None]), short.log_prob(x[:, None]))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rule_draws_from_the_probabilities_that_it_leaves(name):
    """The joint is the product of the conditionals after the rule; greedy is one sequence."""
    num, fn = 4000, distribution(name, batch=(1,))
    rule = DrawingRule(temperature=0.5, nucleus=0.9)
    ruled = fn.drawn_with(rule).expand((1,))
    x = sequences(fn)
    torch.testing.assert_close(ruled.log_prob(x[:, None]), fn.log_prob(x[:, None]))
    steps = rule(_step_logits(fn, x))
    log_p = steps.log_softmax(-1).gather(-1, x.long().unsqueeze(-1)).squeeze(-1)
    is_open = (x == 0).long().cumsum(-1) - (x == 0).long() == 0
    masses = torch.where(is_open, log_p, 0.0).sum(-1).exp()
    torch.testing.assert_close(masses.sum(), torch.ones(()).double())
    shares = (ruled.sample((num,)) == x).all(-1).double().mean(0)
    assert (shares.cumsum(0) - masses.cumsum(0)).abs().max() < kolmogorov_bound(
        num, false_alarm=1e-4
    )
    greedy = fn.drawn_with(DrawingRule(temperature=0)).sample((20,))
    assert len(greedy.unique(dim=0)) == 1


def _step_logits(fn, x):
    return fn.network(x[:, :-1].long(), fn.context.expand(len(x), -1))


def test_a_nucleus_is_the_smallest_set_that_has_the_probability():
    p = torch.tensor([0.05, 0.5, 0.15, 0.3]).double()
    kept = {0.49: [1], 0.51: [1, 3], 0.79: [1, 3], 0.81: [1, 2, 3], 0.96: [0, 1, 2, 3]}
    for nucleus, expected in kept.items():
        drawn = DrawingRule(nucleus=nucleus)(p.log()).softmax(-1)
        alone = torch.zeros(4).double()
        alone[expected] = p[expected] / p[expected].sum()
        torch.testing.assert_close(drawn, alone)
    cold = DrawingRule(temperature=0.5)(p.log()).softmax(-1)
    torch.testing.assert_close(cold, p.square() / p.square().sum())
    for wrong in ({"temperature": -1.0}, {"nucleus": 0.0}, {"nucleus": 1.5}):
        (name, value) = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name}={value}"):
            DrawingRule(**wrong)


# Programs -----------------------------------------------------------------------------------------


def program(name="GRU", **arguments):
    torch.manual_seed(0)
    return VAE.assemble(
        (L,), (2,), encoder=partial(Recurrent, hidden=4, num_symbols=K, padding=0, embedding=2),
        likelihood=partial(AutoregressiveSequence, num_categories=K, num_context=CONTEXT,
                           network=NETWORKS[name], **arguments),
    )  # fmt: skip


X = torch.tensor([[1.0, 2, 0, 0], [2, 1, 1, 2], [0, 0, 0, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_step_gives_the_bits_of_the_eager_one(name):
    def build():
        vae = program(name)
        return Pair(vae.model, vae.guide, (X,))

    assert both(build, ELBO, sizes=[4] * 3).replayed == [False, True, True]


def test_the_network_starts_at_how_often_symbols_occur():
    vae = program()
    vae.likelihood.adapt_outputs(X)
    # Of the 10 places that are told; half a count more each.
    counts = torch.tensor([3.0, 4, 3]) + 0.5
    expected = (counts / counts.sum()).log()
    torch.testing.assert_close(vae.likelihood.family.network.last.bias.detach(), expected)


def test_what_is_drawn_greedily_is_drawn_once():
    vae = program()
    many = evaluation.prior_samples(evaluation.Drawing(temperature=0)(vae.model), X, 3, seed=1)
    again = evaluation.decode(
        evaluation.Drawing(temperature=0)(vae.model), {"z": torch.zeros(5, 2)}, X, seed=3
    )
    assert many.shape == (3, L)
    assert len(again.unique(dim=0)) == 1
    with pytest.raises(ValueError, match="Normal is not drawn category by category"):
        evaluation.Drawing(temperature=0)(
            lambda: pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))
        )()


# Word dropout -------------------------------------------------------------------------------------


def test_what_a_decoder_is_not_shown_changes_nothing_and_is_scored():
    """All inputs hidden, in training mode: the places are independent given z, and sum to one."""
    fn = distribution("GRU", batch=(1,))
    hidden = MaskingNoise(1.0, value=0.0)
    blind = fn.with_input_noise(hidden).expand((1,))
    x = sequences(fn)
    torch.testing.assert_close(
        blind.log_prob(x[:, None]).exp().sum(), torch.ones(()).double(), rtol=0, atol=1e-10
    )
    logits = _step_logits(fn, torch.zeros(1, L))
    ends = Sequence(fn.network, fn.context, length=L, num_categories=K)
    log_p = logits.log_softmax(-1)[0].gather(1, x.long().T).T
    is_open = (x == 0).long().cumsum(-1) - (x == 0).long() == 0
    expected = torch.where(is_open, log_p, 0.0).sum(-1)
    torch.testing.assert_close(blind.log_prob(x[:, None])[:, 0], expected)
    hidden.eval()
    torch.testing.assert_close(blind.log_prob(x[:, None]), ends.log_prob(x[:, None]))


def test_word_dropout_is_for_training_and_for_autoregressive_decoders():
    vae = program()
    noise = MaskingNoise(0.5, value=0.0)
    model = CorruptedInputs(noise)(vae.model)
    dropped = Program(model, vae.guide)
    assert noise in dropped.around
    clean = evaluation.elbo(vae, X, seed=0)
    assert evaluation.elbo(model, vae.guide, X, seed=0).elbo_nats == clean.elbo_nats

    def build():
        hidden, fresh = MaskingNoise(0.5, value=0.0), program()
        return Pair(CorruptedInputs(hidden)(fresh.model), fresh.guide, (X,))

    assert both(build, ELBO, sizes=[4] * 3).replayed == [False, True, True]
    with pytest.raises(ValueError, match="GaussianNoise makes numbers between the symbols"):
        CorruptedInputs(GaussianNoise())
    with pytest.raises(TypeError, match="noise=3"):
        CorruptedInputs(3)
    factorised = VAE.assemble((4,), (2,))
    with pytest.raises(ValueError, match="word dropout is for AutoregressiveSequence"):
        CorruptedInputs(WordDropout(1))(factorised.model)(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_categories": 1}, "num_categories=1"),
        ({"num_categories": 3, "padding": 3}, "padding=3"),
        ({"network": partial(CausalRecurrent, hidden=0)}, "hidden=0"),
        ({"network": partial(CausalTransformer, width=6, num_heads=4)}, "num_heads=4"),
        ({"num_context": 0}, "num_context=0"),
    ],
)
def test_bad_arguments_say_which(arguments, said):
    with pytest.raises(ValueError, match=said):
        AutoregressiveSequence((4,), **arguments)
    with pytest.raises(ValueError, match="rows of one axis"):
        AutoregressiveSequence((2, 2))
