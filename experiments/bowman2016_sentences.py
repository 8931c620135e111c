"""Which cure keeps a language model from ignoring its latents? Sentences, seven ways to train.

    python experiments/bowman2016_sentences.py --scale smoke|cpu|paper

Held against Lagging Inference Networks and Posterior Collapse in Variational Autoencoders (He,
Spokoyny, Neubig & Berg-Kirkpatrick, 2019), table 1, Yahoo: -log p(x), KL and mutual information of
plain, annealed, weighed and aggressive training. Word dropout is of Generating Sentences from a
Continuous Space (Bowman et al., 2016), free bits are of Improved Variational Inference with Inverse
Autoregressive Flow (Kingma et al., 2016): no numbers of theirs are held against here.

The corpus is what a machine with the toolkit has: sentences of 6 to 16 words of the docstrings of
numpy, scipy, scikit-learn, matplotlib, sympy, networkx and torch, in lower case, each once. Their
number depends on the versions, and the record has it. Sentences are shuffled; 1,000 are test data.

As published: 32 latents, one recurrent layer in encoder and decoder; z sets the decoder's first
state and is seen at every step; annealing moves the KL's weight from 0.1 to 1. Otherwise than
published, at every scale: other and shorter sentences, GRUs in place of LSTMs, Adam at 1e-3 in
place of SGD, no dropout of units; aggressive training takes a new batch of the epoch in every step,
so that its decoder takes fewer steps in as many epochs. So only the order within the table counts.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import auto_cli
from study import ScaleName, Study, chosen, judge
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit, laboratory
from pyro_vae.components import AutoregressiveSequence, MaskingNoise, Recurrent
from pyro_vae.components.networks import CausalRecurrent
from pyro_vae.datasets import Reading
from pyro_vae.engine import AsFloat, Turns
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import (
    AnalyticELBO,
    BetaVAE,
    Constant,
    CorruptedInputs,
    FreeBits,
    Layers,
    Linear,
    Objective,
    Scheduled,
)

_PACKAGES = ("numpy", "scipy", "sklearn", "matplotlib", "sympy", "networkx", "torch")
_SENTENCE = re.compile(r"[A-Z][A-Za-z ,;:'\-]*[.?!]")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[.,;:?!]")
_SHORTEST, _LONGEST = 6, 16
_LATENTS, _PADDING = (32,), 0
_FREE_NATS = 5.0
_HIDDEN_SHARE = 0.4  # of the words, under word dropout


class Scale(NamedTuple):
    """How much of the protocol is run.

    The aggressive row has ``most_in_row`` steps of the encoder, and ``aggressive_epochs`` more.
    """

    epochs: int
    warm_up_epochs: int
    num_train: int
    num_test: int
    num_words: int
    hidden: int
    num_samples: int
    most_in_row: int = 100
    aggressive_epochs: int = 0
    packages: int = len(_PACKAGES)


class Row(NamedTuple):
    """A row of the table: how the decoder is kept from ignoring z, and what was published."""

    objective: Callable[[Scale], Objective]
    published_rate_nats: float | None = None
    published_mutual_information_nats: float | None = None
    hidden_share: float = 0.0
    turns: Callable[[Scale], Turns | None] = lambda scale: None

    @property
    def published(self) -> dict[str, float]:
        """What was published, by the names of what is measured."""
        found = {
            "rate_nats": self.published_rate_nats,
            "mutual_information_nats": self.published_mutual_information_nats,
        }
        return {name: value for name, value in found.items() if value is not None}


def plain(scale: Scale) -> Objective:
    return AnalyticELBO()


def annealed(scale: Scale) -> Objective:
    return BetaVAE(Scheduled(Linear(0.1, 1.0, until=scale.warm_up_epochs / scale.epochs)))


def weighed(scale: Scale) -> Objective:
    return BetaVAE(0.4)


def free_bits(scale: Scale) -> Objective:
    return FreeBits(_FREE_NATS, Layers())


def aggressive(scale: Scale) -> Turns:
    return laboratory.Aggressive(window=min(10, scale.most_in_row // 2), longest=scale.most_in_row)


TABLE = {
    "plain": Row(plain, 0.0, 0.0),
    "annealed": Row(annealed, 0.0, 0.0),
    "word dropout": Row(plain, hidden_share=_HIDDEN_SHARE),
    "word dropout, annealed": Row(annealed, hidden_share=_HIDDEN_SHARE),
    "beta = 0.4": Row(weighed, 3.8, 2.2),
    "free bits": Row(free_bits),
    "aggressive": Row(plain, 5.4, 3.0, turns=aggressive),
}

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 1, 100, 12, 50, 8, 5, 4, packages=1),
    "cpu": Scale(8, 4, 12_000, 400, 1_500, 128, 100, 10, 8),
    "paper": Scale(100, 10, 100_000, 1_000, 20_000, 1024, 500),
}

COLUMNS = {
    "nll_nats": "-log p(x), nats",
    "rate_nats": "KL, nats",
    "distortion_nats": "reconstruction, nats",
    "mutual_information_nats": "mutual information, nats",
    "active_units": "active units",
    "training_seconds": "training, s",
}


def corpus(packages: Sequence[str] = _PACKAGES) -> list[str]:
    """Return the sentences of the packages' docstrings, each once, shuffled by a fixed seed."""
    found = dict.fromkeys(s for name in packages for text in _docstrings(name) for s in _of(text))
    sentences = list(found)
    random.Random(0).shuffle(sentences)
    return sentences


def _docstrings(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a test file of a package, which is not to be read
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""


def _of(docstring: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", docstring):
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(paragraph.split())):
            if _SENTENCE.fullmatch(sentence):
                words = _WORD.findall(sentence.lower())
                if _SHORTEST <= len(words) <= _LONGEST:
                    yield " ".join(words)


def data(sentences: list[str], scale: Scale) -> datasets.Dataset:
    """Return the sentences as rows of words: 1,000 test, 1,000 validation, the others to train."""
    held = min(1_000, len(sentences) // 4)
    parts = {
        "test": sentences[:held],
        "validation": sentences[held : 2 * held],
        "train": sentences[2 * held :][: scale.num_train],
    }
    reading = Reading("words", max_symbols=scale.num_words, max_length=_LONGEST)
    with warnings.catch_warnings():
        # Rare words are one word here, on purpose.
        warnings.filterwarnings("ignore", message=".*are not among the")
        return datasets.from_arrays(parts, name="docstrings", text=reading)


def program(texts: datasets.Dataset, scale: Scale) -> VAE:
    """Return the network of all rows."""
    num_words = len(texts.vocabulary or ())
    return VAE.assemble(
        texts.event_shape,
        _LATENTS,
        encoder=partial(Recurrent, hidden=scale.hidden, num_symbols=num_words, padding=_PADDING),
        likelihood=partial(
            AutoregressiveSequence,
            num_categories=num_words,
            padding=_PADDING,
            network=partial(CausalRecurrent, hidden=scale.hidden),
        ),
    )


def run(row: Row, texts: datasets.Dataset, x: Tensor, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table, on the test data ``x``."""
    scale, vae = study.scale, program(texts, study.scale)
    turns, model = row.turns(scale), vae.model
    if row.hidden_share:
        model = CorruptedInputs(MaskingNoise(row.hidden_share, value=_PADDING))(vae.model)
    done = fit(
        model,
        vae.guide,
        texts,
        objective=row.objective(scale),
        optim=partial(adam, lr=1e-3),
        schedule=Constant(),
        observation=AsFloat(),
        turns=turns,
        weights="last",
        epochs=scale.epochs + (scale.aggressive_epochs if turns else 0),
        batch_size=64,
        engine="recorded",
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    x = x.to(next(vae.parameters()).device)
    information = evaluation.mutual_information(vae, x)
    found = judge(vae, x, num_samples=scale.num_samples)
    return {
        **found,
        "mutual_information_nats": information.nats,
        "mutual_information_nats_standard_error": information.nats.standard_error,
        "training_seconds": done.seconds,
        "num_sentences": len(texts.train),
        "sampled": sampled(vae, texts),
    }


def sampled(vae: VAE, texts: datasets.Dataset) -> list[str]:
    """Return four sentences for z drawn from the prior, each word the likeliest."""
    greedy = evaluation.Drawing(temperature=0)(vae.model)
    assert texts.vocabulary is not None
    return texts.vocabulary.decode(evaluation.prior_samples(greedy, texts.test.x.float(), 4))


def main(scale: ScaleName = "cpu", rows: str = "*", seed: int = 0, name: str | None = None) -> None:
    """Train and judge every row; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        texts = data(corpus(_PACKAGES[: study.scale.packages]), study.scale)
        x = texts.test.x[: study.scale.num_test].float()
        for title, row in chosen(TABLE, rows).items():
            study.measure(title, partial(run, row, texts, x, study), published=row.published)
        better = ("word dropout", "word dropout, annealed", "beta = 0.4", "free bits", "aggressive")
        study.order([(row, "plain") for row in better])
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
