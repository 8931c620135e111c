"""What a run of documents found: its topics, with their words, in numbers, tables and a map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli.runs import Run
from pyro_vae.evaluation import Coherence
from pyro_vae.evaluation.topics import topic_decoder
from pyro_vae.report.texts import TextTable
from pyro_vae.report.topics import topic_map
from pyro_vae.terminal import on_one_line

__all__ = ["Topics", "drawn_map", "in_the_terminal", "numbers", "table_of", "topics_of"]

_NUM_WORDS = 10
_NUM_DIVERSE = 25
_NUM_NAMED = 16  # of more, their words would lie on each other


class Topics(NamedTuple):
    """The topics of a run.

    Attributes:
        scores: What each topic does to each word, ``[K, V]``.
        shares: How much of the test documents each has, ``[K]``.
        words: The first words of each, the first first.
        coherence: In the training documents; each is one window.
    """

    scores: Tensor
    shares: Tensor
    words: list[list[str]]
    coherence: Coherence

    @property
    def order(self) -> list[int]:
        """The topics, the largest first."""
        return self.shares.argsort(descending=True).tolist()


def topics_of(run: Run) -> Topics | None:
    """Return the topics of a run; None of a program that has none."""
    decoder = topic_decoder(run.bound)
    if decoder is None:
        return None
    scores = decoder.topics.detach().cpu()
    num_words = min(_NUM_WORDS, scores.shape[1])
    called = run.data.words or tuple(f"word {n}" for n in range(scores.shape[1]))
    first = evaluation.top_words(scores, num_words)
    return Topics(
        scores=scores,
        shares=evaluation.topic_shares(run.program, run.test_rows()).mean(0).cpu(),
        words=[[called[place] for place in row] for row in first.tolist()],
        coherence=evaluation.coherence(scores, run.data.train.x, num_words),
    )


def numbers(topics: Topics) -> dict[str, Any]:
    """Return how good the topics are, as entries of the results."""
    npmi, scores = topics.coherence.npmi, topics.scores
    return {
        "topic_npmi": npmi.value,
        "topic_npmi_standard_error": npmi.standard_error,
        "topic_npmi_of": _measured(topics),
        "topic_diversity": evaluation.diversity(scores, min(_NUM_DIVERSE, scores.shape[1])),
        "topics": [
            {
                "words": topics.words[k],
                "npmi": float(topics.coherence.by_topic[k]),
                "share": float(topics.shares[k]),
            }
            for k in range(len(scores))
        ],
    }


def _measured(topics: Topics) -> str:
    """Return what the coherence is of: it compares with nothing else."""
    return (
        f"the {topics.coherence.num_words} first words of each topic in "
        f"{topics.coherence.num_documents:,} training documents, each of them one window"
    )


def table_of(topics: Topics) -> TextTable:
    """Return the topics as a table for the page, the largest first."""
    npmi = topics.coherence.by_topic
    rows = [
        (str(k), f"{topics.shares[k]:.1%}", f"{npmi[k]:.3f}", " ".join(topics.words[k]))
        for k in topics.order
    ]
    caption = f"Topics by their share of the test documents; NPMI is of {_measured(topics)}"
    return TextTable(caption, ("topic", "share", "NPMI", "words"), rows, 0)


def in_the_terminal(topics: Topics, *, num_rows: int) -> Iterator[str]:
    """Yield lines for the terminal: the largest topics, one a line."""
    shown = topics.order[:num_rows]
    yield f"{len(shown)} of {len(topics.words)} topics, with their share and NPMI:"
    for k in shown:
        npmi = topics.coherence.by_topic[k]
        yield on_one_line(f"  {topics.shares[k]:6.1%}  {npmi:6.3f}  {' '.join(topics.words[k])}")


def drawn_map(run: Run) -> Any:
    """Return the map of a run's topics; None of a program that has none."""
    topics = topics_of(run)
    if topics is None:
        return None
    names = [str(k) for k in range(len(topics.words))]
    for k in topics.order[:_NUM_NAMED]:
        names[k] = " ".join([names[k], *topics.words[k][:2]])
    return topic_map(evaluation.topic_places(topics.scores), topics.shares, names)
