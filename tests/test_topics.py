"""Topic models: documents as mixtures and products of topics, and how good topics are."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from quick import some
from scipy.special import digamma, polygamma
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor, nn

from pyro_vae import VAE, evaluation, fit
from pyro_vae.components import (
    Dirichlet,
    DocumentEncoder,
    LaplaceDirichlet,
    Multinomial,
    Normal,
    ProductOfExperts,
    TopicMixture,
)
from pyro_vae.engine import Callback
from pyro_vae.evaluation.topics import topic_decoder
from pyro_vae.inference.program import Program
from pyro_vae.models import NVLDA, ProdLDA

MODELS = {"ProdLDA": ProdLDA, "NVLDA": NVLDA}
SIMPLEX = {"prior": partial(Dirichlet, concentration=0.5), "posterior": Dirichlet}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in MODELS},
    **{f"{name} of Dirichlets": (name, SIMPLEX) for name in MODELS},
}
V, K = 5, 3
X = torch.randint(0, 4, (40, V), generator=torch.Generator().manual_seed(1)).float()


def built(name: str, dtype: torch.dtype = torch.float64, **parts: Any) -> Any:
    torch.manual_seed(0)
    encoder = partial(DocumentEncoder, hidden=(6,))
    program = MODELS[name].assemble((V,), (K,), encoder=encoder, data=X, **parts)
    return program.to(dtype)


def trained(name: str, **options: Any) -> Any:
    program = built(name, torch.float32, **options.pop("parts", {}))
    return program, fit(program, X, epochs=3, batch_size=16, progress=False, **options)


def stepped(name: str, **parts: Any) -> Any:
    """A program that has met a few batches, so that its batch norms have statistics."""
    program = built(name, torch.float32, **parts).train()
    for rows in X.split(10):
        program.likelihood(program.posterior(rows).rsample())
    return program


# Probabilities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_documents_of_a_length_sum_to_one(kind):
    name, parts = KINDS[kind]
    program = stepped(name, **parts).double().eval()
    z = program.posterior(X[:2].double()).sample()
    documents = [
        [np.bincount(words, minlength=V)]
        for words in itertools.combinations_with_replacement(range(V), 3)
    ]
    log_p = program.likelihood(z).log_prob(torch.tensor(np.array(documents)).double())
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(2).double())


def test_words_are_drawn_of_the_mixture_of_topics():
    program = stepped("NVLDA").double().eval()
    z = torch.randn(4, K).double()
    decoder = program.likelihood.network
    weight = decoder.weight.detach()
    standardised = (weight - weight.mean(0)) / (weight.var(0, unbiased=False) + 1e-5).sqrt()
    topics = torch.softmax(decoder.offset + standardised, -1)
    shares = torch.softmax(z, -1) @ topics
    torch.testing.assert_close(program.likelihood(z).logits.softmax(-1), shares)
    torch.testing.assert_close(decoder.topics.exp(), topics)


def test_words_are_drawn_of_the_product_of_topics():
    program = stepped("ProdLDA").double().eval()
    z = torch.randn(4, K).double()
    decoder, offset = program.likelihood.network, program.likelihood.offset.squeeze(0)
    scale = (decoder.norm.running_var + 1e-5).sqrt()
    each = (decoder.topics - decoder.norm.running_mean) / scale  # of one topic alone
    product = (torch.softmax(z, -1).unsqueeze(-1) * each).sum(1).exp() * offset.exp()
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(program.likelihood(z).logits.softmax(-1), expected)
    # The batch norm has no scale, and its offset is that of the conditional.
    assert {name for name, _ in decoder.named_parameters()} == {"experts.weight"}


@pytest.mark.parametrize("name", MODELS)
def test_words_start_as_frequent_as_in_the_data(name):
    program = built(name)
    decoder = program.likelihood.network
    offset = decoder.offset if name == "NVLDA" else program.likelihood.offset.squeeze(0)
    shares = X.double().mean(0) / X.double().mean(0).sum()
    torch.testing.assert_close(offset.detach().softmax(-1), shares, rtol=1e-5, atol=1e-6)


def test_a_network_with_an_offset_of_its_own_leaves_none_to_its_conditional():
    for name, learned in {"NVLDA": False, "ProdLDA": True}.items():
        names = {each for each, _ in built(name).likelihood.named_parameters()}
        assert ("offset" in names) is learned, name
        assert built(name).likelihood.offset.any() == learned


# Dirichlets ---------------------------------------------------------------------------------------

A = [0.3, 1.0, 4.0, 2.5]


def test_the_laplace_approximation_has_the_moments_of_a_dirichlet_of_much_concentration():
    """In the basis of the softmax these are digamma and trigamma, which near log a and 1 / a."""
    for factor, tolerance in ((1e2, 2e-2), (1e4, 2e-4)):
        a = factor * np.array(A)
        normal = LaplaceDirichlet((4,), concentration=a.tolist())().base_dist
        of_trigamma = polygamma(1, a)
        variance = of_trigamma * (1 - 2 / 4) + of_trigamma.sum() / 16
        loc = digamma(a) - digamma(a).mean()
        np.testing.assert_allclose(normal.variance, variance, rtol=tolerance)
        np.testing.assert_allclose(normal.mean, loc, rtol=tolerance, atol=tolerance)


def test_samples_of_a_dirichlet_agree_with_its_laplace_approximation():
    torch.manual_seed(0)
    a = torch.tensor([60.0, 80.0, 200.0])
    logs = dist.Dirichlet(a).sample((100_000,)).log()
    z = logs - logs.mean(-1, keepdim=True)
    normal = LaplaceDirichlet((3,), concentration=a.tolist())().base_dist
    torch.testing.assert_close(normal.mean, z.mean(0), rtol=0.02, atol=0.01)
    torch.testing.assert_close(normal.scale, z.std(0), rtol=0.02, atol=0)


def test_the_published_prior_has_the_published_variance():
    normal = LaplaceDirichlet((50,))().base_dist
    torch.testing.assert_close(normal.variance, torch.full((50,), 0.98))
    assert not normal.mean.any()


def test_a_dirichlet_posterior_follows_implicit_gradients():
    """Of E[z_0^2] = a_0 (a_0 + 1) / (s (s + 1)), against autodiff of the formula."""
    torch.manual_seed(0)
    raw = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    family = Dirichlet((3,)).double()
    z = family(raw).rsample((200_000,))
    (found,) = torch.autograd.grad(z[:, 0].square().mean(), raw)
    a = family(raw).concentration
    moment = a[0] * (a[0] + 1) / (a.sum() * (a.sum() + 1))
    (expected,) = torch.autograd.grad(moment, raw)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=5e-4)


def test_lda_with_true_dirichlets_has_the_bound_of_its_closed_form():
    """Its KL is in closed form; and z are the proportions, with no softmax before the topics."""
    program = stepped("NVLDA", **SIMPLEX).double().eval()
    assert isinstance(program.likelihood.network.proportions, nn.Identity)
    z = program.posterior(X.double()).sample()
    shares = program.likelihood(z).logits.softmax(-1)
    torch.testing.assert_close(shares, z @ program.likelihood.network.topics.exp())
    q, p = program.posterior(X.double()), program.prior()
    bound = evaluation.elbo(program, X.double(), num_particles=400)
    assert abs(bound.rate_nats - torch.distributions.kl_divergence(q, p).mean()) < 0.05


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", some(KINDS, "ProdLDA", "NVLDA of Dirichlets"))
def test_recorded_steps_have_the_bits_of_eager_ones(kind):
    name, parts = KINDS[kind]
    eager, recorded = (trained(name, engine=e, parts=parts)[0] for e in ("eager", "recorded"))
    state = eager.state_dict()
    assert any("running_mean" in key for key in state)  # of batch norm
    assert same(state, recorded.state_dict())


def test_a_resumed_run_has_the_same_bits(tmp_path):
    whole, _ = trained("ProdLDA", out=tmp_path / "whole")
    half = built("ProdLDA", torch.float32)
    options = {"batch_size": 16, "progress": False, "out": tmp_path / "half"}
    with pytest.raises(KeyboardInterrupt):
        fit(half, X, epochs=3, callbacks=[Stop(after=2)], **options)
    again = built("ProdLDA", torch.float32)
    fit(again, X, epochs=3, resume=True, **options)
    assert same(whole.state_dict(), again.state_dict())


class Stop(Callback):
    """Interrupt a run after some epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def epoch(self, run: Any, record: Any) -> dict[str, float]:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return {}


def synthetic(num: int = 400) -> tuple[Tensor, Tensor]:
    """Documents of four topics over twelve words, of which each topic has three of its own."""
    torch.manual_seed(3)
    topics = torch.full((4, 12), 0.01)
    for k in range(4):
        topics[k, 3 * k : 3 * k + 3] = torch.tensor([0.35, 0.3, 0.25])
    topics /= topics.sum(-1, keepdim=True)
    theta = dist.Dirichlet(torch.full((4,), 0.1)).sample((num,))
    return dist.Multinomial(40, probs=theta @ topics).sample(), topics


@pytest.mark.parametrize("name", some(MODELS, "ProdLDA"))
def test_topics_of_synthetic_documents_are_those_that_lda_finds(name):
    x, truth = synthetic()
    torch.manual_seed(0)
    encoder = partial(DocumentEncoder, hidden=(20,), dropout=0.0)
    decoder = {"ProdLDA": ProductOfExperts, "NVLDA": TopicMixture}[name]
    program = MODELS[name].assemble(
        (12,), (4,), encoder=encoder, decoder=partial(decoder, dropout=0.1),
        prior=partial(LaplaceDirichlet, concentration=0.1), data=x,
    )  # fmt: skip
    fit(
        program, x, epochs=50, batch_size=50, progress=False, weights="last", engine="recorded",
        optim=partial(torch.optim.Adam, lr=0.02, betas=(0.99, 0.999)),
    )  # fmt: skip
    found = topic_decoder(Program(program.model, program.guide)).topics
    lda = LatentDirichletAllocation(4, random_state=0).fit(x.numpy())
    theirs = words(torch.tensor(lda.components_))
    assert theirs == words(truth)
    assert words(found) == theirs


def words(topics: Tensor) -> set[frozenset[int]]:
    """The three first words of each topic."""
    return {frozenset(row.tolist()) for row in evaluation.top_words(topics, 3)}


# How good topics are ------------------------------------------------------------------------------

DOCUMENTS = torch.tensor(
    [[2, 1, 0, 0, 3], [1, 0, 1, 0, 1], [0, 4, 0, 0, 1], [1, 1, 1, 0, 2], [0, 0, 1, 0, 1]]
)


def by_hand(topic: list[int], documents: Tensor) -> float:
    """NPMI of one topic's words, pair by pair."""
    found = []
    for v, w in itertools.combinations(topic, 2):
        has = [[document[v] > 0, document[w] > 0] for document in documents.tolist()]
        p_v, p_w = (sum(each[i] for each in has) / len(has) for i in (0, 1))
        both = sum(all(each) for each in has) / len(has)
        if both == 0:
            found.append(-1.0)
        elif both == 1:
            found.append(0.0)
        else:
            found.append(math.log(both / (p_v * p_w)) / -math.log(both))
    return sum(found) / len(found)


@pytest.mark.parametrize("num_words", [2, 3, 5])
def test_coherence_is_that_of_pairs_counted_by_hand(num_words):
    topics = torch.tensor([[5.0, 4, 3, 2, 1], [1.0, 2, 3, 4, 5], [0.0, 9, 1, 2, 8]])
    order = topics.argsort(descending=True)[:, :num_words].tolist()
    expected = [by_hand(topic, DOCUMENTS) for topic in order]
    found = evaluation.coherence(topics, DOCUMENTS, num_words)
    np.testing.assert_allclose(found.by_topic, expected)
    assert found.npmi == pytest.approx(np.mean(expected))
    assert (found.num_words, found.num_documents) == (num_words, 5)


def test_coherence_at_its_ends():
    together = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    topics = torch.eye(4) + torch.eye(4).roll(1, 1) / 2  # each word with the next
    found = evaluation.coherence(topics, together, 2)
    np.testing.assert_allclose(found.by_topic, [1.0, -1.0, 0.0, 0.0], atol=1e-12)
    # Word 2 and a word that all documents have are independent, and so are 0 and 3.
    assert found.num_absent == 0
    absent = evaluation.coherence(topics[:2], together * torch.tensor([1, 1, 0, 1]), 2)
    assert absent.num_absent == 1
    assert absent.by_topic[1] == -1


def test_coherence_in_windows_is_that_of_gensim():
    models = pytest.importorskip("gensim.models.coherencemodel", reason="gensim is absent")
    corpora = pytest.importorskip("gensim.corpora")
    rng = np.random.default_rng(0)
    # Of a word that is twice in a window, gensim loses sight when the first of them leaves it.
    rounds = [np.tile(rng.permutation(8), 3)[: rng.integers(6, 20)] for _ in range(60)]
    texts = [[f"w{n}" for n in words] for words in rounds]
    topics = torch.tensor(rng.normal(size=(3, 8)))
    dictionary = corpora.Dictionary([[f"w{n}" for n in range(8)], *texts])
    tops = [[f"w{n}" for n in row] for row in evaluation.top_words(topics, 4).tolist()]
    theirs = models.CoherenceModel(
        topics=tops, texts=texts, dictionary=dictionary, coherence="c_npmi", window_size=5,
        processes=1,
    )  # fmt: skip
    numbers = [[int(word[1:]) for word in text] for text in texts]
    windows = evaluation.sliding_windows(numbers, 8, width=5)
    ours = evaluation.coherence(topics, windows, 4)
    # They add 1e-12 to the share of windows with both words.
    np.testing.assert_allclose(ours.by_topic, theirs.get_coherence_per_topic(), rtol=1e-9)


def test_windows_of_a_corpus():
    windows = evaluation.sliding_windows([[0, 1, -1, 2], [2]], 3, width=2)
    assert windows.int().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_diversity_is_the_share_of_different_words():
    topics = torch.tensor([[3.0, 2, 1, 0], [3.0, 0, 1, 2]])
    assert evaluation.diversity(topics, 2) == 3 / 4
    assert evaluation.diversity(topics, 1) == 1 / 2


class Unigrams(nn.Module):
    """Words that do not depend on z, of which q is the prior: the bound is log p(x)."""

    log_p = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64).log()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.log_p.expand(*z.shape[:-1], V)
            pyro.sample("x", Multinomial((V,))(logits.unsqueeze(-2)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def test_perplexity_is_that_of_words_in_their_order():
    x = torch.cat([X, torch.zeros(2, V)]).double()
    found = evaluation.perplexity(Unigrams(), x)
    nats = [-(row * Unigrams.log_p).sum() / row.sum() for row in X.double()]
    assert found.nats_per_word == pytest.approx(torch.stack(nats).mean().item())
    assert found.upper_bound == pytest.approx(math.exp(found.nats_per_word))
    assert (found.num_documents, found.num_words) == (40, X.sum())


def test_perplexity_is_above_that_of_the_likelihood():
    program = stepped("ProdLDA").double().eval()
    x = X.double()
    log_p = evaluation.log_likelihood(program, x, num_samples=400)
    totals = x.sum(-1)
    orders = (totals + 1).lgamma() - (x + 1).lgamma().sum(-1)
    exact = ((orders - log_p) / totals).mean()
    found = evaluation.perplexity(program, x, num_particles=400)
    assert exact < found.nats_per_word < exact + 0.3


def test_shares_of_topics_are_proportions_at_the_posterior_mean():
    program = stepped("ProdLDA").eval()
    shares = evaluation.topic_shares(program, X)
    torch.testing.assert_close(shares, torch.softmax(program.posterior(X).mean, -1))


# Mistakes -----------------------------------------------------------------------------------------

MISTAKES = {
    "one topic": (lambda: ProdLDA.assemble((V,), (1,)), "2 topics or more"),
    "one topic of a decoder": (lambda: TopicMixture((1,), (V,)), "TopicMixture of 1 topic"),
    "concentration": (lambda: LaplaceDirichlet((3,), concentration=0.0), "concentration=0: give"),
    "one of them": (lambda: Dirichlet((2,), concentration=[1.0, -2.0]), "concentration=-2: give"),
    "too few": (lambda: Dirichlet((3,), concentration=[1.0, 2.0]), "2 numbers for 3 proportions"),
    "dropout": (lambda: ProductOfExperts((3,), (V,), dropout=1.0), "dropout=1: the probability"),
    "negative counts": (lambda: fit(built("NVLDA"), -X, epochs=1), "counts"),
    "weights": (lambda: fit(built("NVLDA"), X + 0.5, epochs=1), "counts"),
    "vocabularies": (
        lambda: evaluation.coherence(torch.eye(3), DOCUMENTS, 2),
        r"documents of shape \(5, 5\) for topics over 3 words",
    ),
    "one word": (lambda: evaluation.coherence(torch.eye(5), DOCUMENTS, 1), "num_words=1"),
    "too many words": (lambda: evaluation.top_words(torch.eye(3), 4), "num_words=4"),
    "no window": (lambda: evaluation.sliding_windows([[0]], 1, width=0), "width=0"),
    "unknown word": (lambda: evaluation.sliding_windows([[4]], 3), "word 4: num_words=3"),
    "no words": (lambda: evaluation.perplexity(Unigrams(), torch.zeros(2, V)), "no document has"),
    "no topics": (lambda: evaluation.topic_shares(Unigrams(), X.double()), "decoder of topics"),
    "no bags": (
        lambda: evaluation.perplexity(VAE.assemble((V,), (2,), likelihood=Normal), X),
        "observes Normal",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_cure(name):
    wrong, said = MISTAKES[name]
    with pytest.raises(ValueError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)
