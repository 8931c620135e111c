"""Are topics that are multiplied more coherent than topics that are mixed? 20 newsgroups.

    python experiments/srivastava2017_prodlda.py --scale smoke|cpu|paper --data_root FOLDER

Held against Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017), 50
topics: NPMI .24 of ProdLDA (.25, .23, .25 in the logs that its authors released), .11 of neural
LDA, and of LDA .11 by variational inference and .17 by Gibbs sampling; perplexity 1172 and 1059 of
the first two. Words and documents are the published ones, 1,995 and 11,258 / 7,487.

As published: the Laplace approximation of a Dirichlet of concentration 1, an encoder of 100-100
units with dropout and batch norms, Adam with beta1 0.99 at 0.002 (neural LDA 0.005), batches of
200, 200 epochs (neural LDA 300), one draw, the last weights. LDA is scikit-learn's, by online
variational inference. One row has true Dirichlets in place of normals, reparameterised by
implicit gradients, of concentration 0.1 and with a plain encoder.

Otherwise than published: NPMI is of the ten first words of each topic in whole documents of the
training set, and, as a reference corpus, of the test set. The published reference is another
corpus, with windows of words, so that the order of the rows compares and the numbers do not.
Perplexity is an upper bound, from the ELBO with the running statistics of batch norms; the
released code takes those of single documents, and a document then says nothing of its topics.
Batches are drawn without replacement. Neural LDA has no dropout of its topics; a row of its own has
that of the authors.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from sklearn.decomposition import LatentDirichletAllocation
from study import ScaleName, Study
from torch import Tensor, nn

from pyro_vae import datasets, evaluation, fit
from pyro_vae.components import MLP, Dirichlet, TopicMixture
from pyro_vae.datasets.data import joined
from pyro_vae.engine.optimizers import adam
from pyro_vae.evaluation.topics import topic_decoder
from pyro_vae.inference import Constant, Program
from pyro_vae.models import NVLDA, ProdLDA


class Scale(NamedTuple):
    """How much is trained."""

    num_train: int
    num_topics: int
    epochs: int
    mixture_epochs: int
    lda_epochs: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(300, 4, 1, 1, 1),
    "cpu": Scale(11_258, 50, 200, 60, 20),
    "paper": Scale(11_258, 50, 200, 300, 100),
}

PUBLISHED = {
    "ProdLDA": {"npmi": 0.24, "perplexity_bound": 1172.0},
    "neural LDA": {"npmi": 0.11, "perplexity_bound": 1059.0},
    "LDA (scikit-learn)": {"npmi": 0.11},
}
COLUMNS = {
    "npmi": "NPMI, training",
    "npmi_test": "NPMI, test",
    "diversity": "diversity",
    "perplexity_bound": "perplexity, at most",
    "rate_nats": "KL, nats",
}


def documents(data_root: Path, scale: Scale) -> datasets.Dataset:
    """Return the documents, of which all that are not for testing are trained on, as published."""
    found = datasets.load(data_root / "20newsgroups")
    train = joined([found.train, found.validation])[: scale.num_train]
    return datasets.Dataset(
        found.name, train, found.validation, found.test, found.levels, words=found.words
    )


def judged(topics: Tensor, data: datasets.Dataset) -> dict[str, Any]:
    """Return how good topics are, and print the words of the most coherent ones."""
    found = {
        part: evaluation.coherence(topics, rows.x)
        for part, rows in (("npmi", data.train), ("npmi_test", data.test))
    }
    by_topic = found["npmi"].by_topic
    for k, row in enumerate(evaluation.top_words(topics).tolist()):
        if data.words and by_topic[k] >= by_topic.sort().values[-5:][0]:
            print(f"  {by_topic[k]:.2f}", *(data.words[n] for n in row), file=sys.stderr)
    numbers = {name: each.npmi.value for name, each in found.items()}
    errors = {f"{name}_standard_error": each.npmi.standard_error for name, each in found.items()}
    return {**numbers, **errors, "diversity": evaluation.diversity(topics)}


def neural(
    kind: Any, data: datasets.Dataset, scale: Scale, epochs: int, seed: int, **parts: Any
) -> dict[str, Any]:
    """Train a topic model and measure it on the test documents."""
    torch.manual_seed(seed)
    rate, momentum = kind.settings["lr"], kind.settings["momentum"]
    program = kind.assemble(
        data.event_shape, (scale.num_topics,), data=data.train.x.float(), **parts
    )
    done = fit(
        program, data, epochs=epochs, batch_size=min(200, len(data.train)), seed=seed,
        schedule=Constant(), optim=partial(adam, lr=rate, momentum=momentum), weights="last",
        device="cpu", progress=sys.stderr.isatty(),
    )  # fmt: skip
    topics = topic_decoder(Program(program.model, program.guide)).topics.detach()
    x = data.test.x.float()
    perplexity = evaluation.perplexity(program, x)
    return {
        **judged(topics, data),
        "perplexity_bound": perplexity.upper_bound.value,
        "perplexity_bound_standard_error": perplexity.upper_bound.standard_error,
        "rate_nats": evaluation.elbo(program, x).rate_nats.value,
        "training_seconds": done.seconds,
    }


def lda(data: datasets.Dataset, scale: Scale, seed: int) -> dict[str, Any]:
    """Fit scikit-learn's LDA to the training documents."""
    model = LatentDirichletAllocation(
        scale.num_topics, max_iter=scale.lda_epochs, learning_method="online", batch_size=200,
        random_state=seed,
    )  # fmt: skip
    model.fit(data.train.x.numpy())
    return judged(torch.from_numpy(model.components_), data)


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train topic models; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        chosen = study.scale
        data = documents(data_root, chosen)
        study.note(
            num_documents=[len(data.train), len(data.test)],
            num_words=data.event_shape[0],
            coherence="NPMI of the 10 first words; a window is a whole document",
        )
        mixture = partial(neural, NVLDA, data, chosen, chosen.mixture_epochs, seed)
        dirichlets = {
            "prior": partial(Dirichlet, concentration=0.1),
            "posterior": Dirichlet,
            "encoder": partial(MLP, hidden=(100, 100), activation=nn.Softplus),
        }
        rows = {
            "ProdLDA": partial(neural, ProdLDA, data, chosen, chosen.epochs, seed),
            "neural LDA": mixture,
            "neural LDA, dropout 0.6": partial(mixture, decoder=partial(TopicMixture, dropout=0.6)),
            "neural LDA of Dirichlets": partial(mixture, **dirichlets),
            "LDA (scikit-learn)": partial(lda, data, chosen, seed),
        }
        for title, row in rows.items():
            study.measure(title, row, published=PUBLISHED.get(title))
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
