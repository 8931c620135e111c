"""Are topics good? Their words, whether these occur together, how they differ, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.evaluation.batching import double
from pyro_vae.evaluation.estimates import Estimate, Result
from pyro_vae.evaluation.latents import posterior_means
from pyro_vae.evaluation.likelihood import elbo_of_each
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program

__all__ = [
    "Coherence",
    "Perplexity",
    "coherence",
    "diversity",
    "perplexity",
    "sliding_windows",
    "top_words",
    "topic_decoder",
    "topic_places",
    "topic_shares",
]

_NUM_WORDS = 10
_COUNTED = (distributions.Multinomial, dist.Multinomial, dist.DirichletMultinomial)


@dataclass(frozen=True, eq=False, repr=False)
class Coherence(Result):
    """How often the top words of topics occur together in some documents, by NPMI.

    Attributes:
        npmi: The mean over topics; its standard error is that over topics.
        by_topic: Of each topic, ``[K]``, between -1 (never together) and 1 (always).
        num_words: N, how many top words of each topic are compared.
        num_documents: How many documents, or windows of them, are counted.
        num_absent: How many of the top words occur in none of them.
    """

    npmi: Estimate
    by_topic: Tensor
    num_words: int
    num_documents: int
    num_absent: int


@dataclass(frozen=True, eq=False, repr=False)
class Perplexity(Result):
    """An upper bound of the perplexity: the ELBO is a lower bound of log p(x).

    Attributes:
        upper_bound: exp of ``nats_per_word``, the published figure of neural topic models.
        nats_per_word: -ELBO over the number of words of each document, averaged over documents.
        num_documents: How many have a word; the others are left out.
        num_words: How many they have together.
    """

    upper_bound: Estimate
    nats_per_word: Estimate
    num_documents: int
    num_words: int


# Words of topics ----------------------------------------------------------------------------------


def topic_decoder(program: Program) -> Any:
    """Return the module of a program that has ``topics``, ``[K, V]``, and ``proportions``.

    None where there is none, or several. ``topics`` says what each topic does to each word, in
    whatever unit: larger is more. ``proportions(z)`` maps latents to shares of the topics.
    """
    parts = (part for module in program.reachable for part in module.modules())
    found = {id(part): part for part in parts if hasattr(type(part), "topics")}
    return next(iter(found.values())) if len(found) == 1 else None


@at_the_door
def top_words(topics: Tensor, num_words: int = _NUM_WORDS) -> Tensor:
    """Return the columns of the first words of each topic, ``[K, num_words]``, the first first.

    Args:
        topics: What each topic does to each word, ``[K, V]``; larger is more.
        num_words: How many.

    Raises:
        ValueError: If there are not so many words.
    """
    if not 1 <= num_words <= topics.shape[-1]:
        raise ValueError(
            f"num_words={num_words}: the vocabulary has {topics.shape[-1]:,} words; give 1 to "
            "that many"
        )
    return topics.detach().topk(num_words, -1).indices


@at_the_door
def diversity(topics: Tensor, num_words: int = 25) -> float:
    """Return the share of different words among the top words of all topics, 1/K to 1.

    Args:
        topics: What each topic does to each word, ``[K, V]``; larger is more.
        num_words: How many top words of each topic count.

    Raises:
        ValueError: If there are not so many words.

    References:
        Topic Modeling in Embedding Spaces (Dieng, Ruiz & Blei, 2020)
    """
    words = top_words(topics, num_words)
    return len(words.unique()) / words.numel()


# Coherence ----------------------------------------------------------------------------------------


@at_the_door
def coherence(topics: Tensor, documents: Tensor, num_words: int = _NUM_WORDS) -> Coherence:
    r"""Return the NPMI of the top words of topics in some documents.

    .. math:: \mathrm{NPMI}(v, w) = \log \frac{p(v, w)}{p(v) \, p(w)} \Big/ -\log p(v, w),

    averaged over the pairs of a topic's top words, where p counts the documents that a word, or
    both, occur in. Pairs that never occur together count -1, and pairs in all documents 0. The
    documents may be those of training (in-corpus), others with the same vocabulary (a reference
    corpus), or windows, see ``sliding_windows``. Numbers from other documents, windows or numbers
    of words do not compare.

    Args:
        topics: What each topic does to each word, ``[K, V]``; larger is more.
        documents: Bags of words, ``[N, V]``: what is above 0 occurs.
        num_words: How many top words of each topic are compared.

    Raises:
        ValueError: If there are fewer than two words, or the vocabularies differ.

    References:
        Normalized (Pointwise) Mutual Information in Collocation Extraction (Bouma, 2009)
        Machine Reading Tea Leaves (Lau, Newman & Baldwin, 2014)
    """
    if documents.dim() != 2 or documents.shape[-1] != topics.shape[-1] or not len(documents):
        raise ValueError(
            f"documents of shape {tuple(documents.shape)} for topics over {topics.shape[-1]:,} "
            "words: give bags of the same vocabulary, (N, V)"
        )
    if num_words < 2:
        raise ValueError(f"num_words={num_words}: coherence is of pairs of words; give 2 or more")
    words = top_words(topics, num_words).to(documents.device)
    by_topic = torch.stack([_npmi(double(documents[:, row] > 0)) for row in words])
    used = words.unique()
    absent = int((~(documents[:, used] > 0).any(0)).sum())
    return Coherence(Estimate.of(by_topic, ""), by_topic, num_words, len(documents), absent)


def _npmi(present: Tensor) -> Tensor:
    """Return the mean NPMI of the pairs of some words, from where they occur, ``[N, words]``."""
    single, joint = present.mean(0), present.T @ present / len(present)
    ratio = (joint / (single * single.unsqueeze(-1))).log() / -joint.log()
    npmi = torch.where(joint > 0, torch.where(joint < 1, ratio, 0.0), -1.0)
    is_pair = torch.ones_like(npmi).triu(1) > 0
    return npmi[is_pair].mean()


@at_the_door
def sliding_windows(documents: Sequence[Sequence[int]], num_words: int, width: int = 10) -> Tensor:
    """Return which words each window of a corpus holds, ``[windows, num_words]`` of booleans.

    Windows are of ``width`` words in a row, one for each place; a shorter document is one window.
    ``coherence(topics, sliding_windows(...))`` is then the NPMI in windows of a reference corpus.

    Args:
        documents: The numbers of each document's words in their order; negative ones are words
            outside the vocabulary, which take a place.
        num_words: V, the size of the vocabulary.
        width: How many words a window has.

    Raises:
        ValueError: If the width is less than one, or a number is not below ``num_words``.
    """
    if width < 1:
        raise ValueError(f"width={width}: a window has 1 word or more")
    windows = [
        list(document[start : start + width])
        for document in documents
        for start in range(max(1, len(document) - width + 1))
    ]
    found = torch.zeros(len(windows), num_words, dtype=torch.bool)
    for window, held in zip(windows, found, strict=True):
        known = [word for word in window if word >= 0]
        if known and max(known) >= num_words:
            raise ValueError(f"word {max(known)}: num_words={num_words} has the words below that")
        held[known] = True
    return found


@at_the_door
def topic_places(topics: Tensor) -> Tensor:
    """Return places of topics in the plane, ``[K, 2]``: near each other where their words agree.

    Classical scaling of the root of the Jensen-Shannon divergence of their words, whose
    probabilities are the softmax of ``topics``.

    Args:
        topics: What each topic does to each word, ``[K, V]``.

    Raises:
        ValueError: If there are fewer than two topics.
    """
    from sklearn.decomposition import KernelPCA  # takes a while to import

    if len(topics) < 2:
        raise ValueError(f"{len(topics)} topic: a map is of 2 or more")
    p = double(topics.detach()).softmax(-1)
    middle = (p.unsqueeze(1) + p) / 2
    entropy = -torch.xlogy(p, p).sum(-1)
    between = -torch.xlogy(middle, middle).sum(-1)
    divergence = (between - (entropy.unsqueeze(1) + entropy) / 2).clamp(min=0).cpu()
    scaling = KernelPCA(2, kernel="precomputed", eigen_solver="dense")
    places = torch.from_numpy(scaling.fit_transform((-divergence / 2).numpy()))
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))


# Documents ----------------------------------------------------------------------------------------


@takes_program
def topic_shares(probe: Probe, x: Tensor, *fields: Tensor) -> Tensor:
    """Return the shares of the topics in each document, ``[N, K]``, at the posterior mean of z.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Bags of words, ``[N, V]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.

    Raises:
        ValueError: If the program has no decoder of topics with one latent before it.
    """
    decoder = topic_decoder(probe.program)
    if decoder is None or len(probe.layout.latents) != 1:
        raise ValueError(
            "the program has not one decoder of topics: a module with topics, [K, V], and "
            "proportions, as ProductOfExperts and TopicMixture are"
        )
    (means,) = posterior_means(probe, x, *fields).values()
    with probe.program.evaluating(seed=0):
        found: Tensor = decoder.proportions(means)
    return found


@takes_program
def perplexity(
    probe: Probe, x: Tensor, *fields: Tensor, num_particles: int = 1, seed: int = 0
) -> Perplexity:
    r"""Return an upper bound of the perplexity of documents, from the ELBO.

    .. math:: \exp \Bigl( \frac1D \sum_d - \frac{1}{N_d} \bigl( \mathrm{ELBO}_d -
        \log \frac{N_d!}{\prod_w x_{dw}!} \bigr) \Bigr)

    The likelihood of a bag counts the orders of its words, that of the words in their order does
    not: their number is taken off. Batch norms use their running statistics; published code that
    takes those of single documents reports other numbers.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Bags of words, ``[N, V]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_particles: The number of samples of the latents for each datum.
        seed: Of the samples; the random state outside is not touched.

    Raises:
        ValueError: If the program does not observe bags of words under a multinomial, or no
            document has a word.

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """
    _check_counted(probe)
    has_words = x.sum(-1) > 0
    if not bool(has_words.any()):
        raise ValueError("no document has a word: perplexity is of each word")
    x, *fields_ = (each[has_words] for each in (x, *fields))
    bound = elbo_of_each(probe, x, *fields_, num_particles=num_particles, seed=seed)
    counts = double(x).to(bound.device)
    totals = counts.sum(-1)
    orders = (totals + 1).lgamma() - (counts + 1).lgamma().sum(-1)
    nats = Estimate.of((orders - bound) / totals, "nats per word")
    largest = math.exp(min(nats, 700.0))
    return Perplexity(
        upper_bound=Estimate(largest, largest * nats.standard_error),
        nats_per_word=nats,
        num_documents=len(x),
        num_words=int(totals.sum()),
    )


def _check_counted(probe: Probe) -> None:
    observed = [probe.model_trace.nodes[name]["fn"] for name in probe.layout.observed]
    bases = [getattr(fn, "base_dist", fn) for fn in observed]
    if len(bases) != 1 or not isinstance(bases[0], _COUNTED):
        raise ValueError(
            "perplexity is of bags of words, observed by one Multinomial; this program observes "
            f"{', '.join(type(base).__name__ for base in bases)}"
        )
