"""Do the clusters of a Gaussian-mixture VAE find digits, and does a mixture posterior train better?

    python experiments/clusters.py --scale smoke|cpu|paper --data_root FOLDER

Three questions on binarised MNIST. First, the clusters of q(y | x) of a Gaussian-mixture VAE, exact
in the cluster, beside k-means on the latents of a plain VAE: both are held against the classes, by
accuracy under the best match of clusters and classes, and by normalised mutual information.
Variational Deep Embedding (Jiang et al., 2017) has 94.46 % after a stacked autoencoder was trained
layer by layer to start from, Deep Unsupervised Clustering with Gaussian Mixture Variational
Autoencoders (Dilokthanakul et al., 2016) 82.31 % with 10 clusters, best of their runs; here nothing
is trained to start from, so the numbers do not compare.

Second, a mixture of four normals as the posterior, each component with a particle and gradients
(Automatic Differentiation Variational Inference with Mixtures, Morningstar et al., 2021), beside
the same mixture trained by score functions with as many particles, for the same processor time; and
a single normal. The bound is that of one draw, log p(x) is importance-sampled.

Networks are two layers of 200, batch 100, Adam at 1e-3 whose rate falls as half a cosine wave. At
the scale cpu there are fewer images and epochs.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, judge
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP, MixtureOfNormals, StratifiedMixture
from pyro_vae.engine import Binarize
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import ELBO, RLOO, AnalyticELBO, Objective
from pyro_vae.models import GMVAE

_LATENTS, _COMPONENTS, _CLUSTERS = (10,), 4, 10
PUBLISHED = {"GMVAE": {"accuracy_percent": 82.31}}


class Scale(NamedTuple):
    """How much is run."""

    num_train: int
    num_test: int
    epochs_of_clusters: int
    epochs_of_mixtures: int
    num_samples: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(200, 50, 1, 1, 10),
    "cpu": Scale(10_000, 1_000, 15, 10, 500),
    "paper": Scale(50_000, 10_000, 300, 300, 5_000),
}

# Which row is expected to be the better one.
ORDER = [
    ("mixture, stratified", "mixture, score function"),
    ("mixture, stratified", "one normal"),
]

COLUMNS = {
    "accuracy_percent": "accuracy, %",
    "information": "normalised mutual information",
    "elbo_nats": "test ELBO, nats",
    "nll_nats": "-log p(x), nats",
    "epochs": "epochs",
    "processor_seconds": "processor, s",
}


def parts(root: Path, scale: Scale) -> datasets.Dataset:
    """Return MNIST as rows of 784."""
    whole = datasets.load("mnist", root=root)
    kept = (
        whole.train[: scale.num_train], whole.validation[:1_000], whole.test[: scale.num_test]
    )  # fmt: skip
    flat = (part.replace(x=part.x.flatten(1)) for part in kept)
    return datasets.Dataset("mnist", *flat, whole.levels, whole.classes)


def trained(
    program: Any, data: datasets.Dataset, objective: Objective, epochs: int, seed: int
) -> float:
    """Train a program; return the processor seconds that it took."""
    start = time.process_time()
    fit(
        program, data, objective=objective, observation=Binarize(255), epochs=epochs,
        batch_size=100, optim=partial(adam, lr=1e-3), weights="last", seed=seed, device="cpu",
        engine="recorded", progress=sys.stderr.isatty(),
    )  # fmt: skip
    program.eval()
    return time.process_time() - start


network = partial(MLP, hidden=(200, 200))


def agreement(found: Tensor, labels: Tensor) -> dict[str, float]:
    """Return how clusters agree with classes."""
    return {
        "accuracy_percent": 100 * evaluation.cluster_accuracy(found, labels),
        "information": evaluation.normalized_mutual_information(found, labels),
    }


def judged(program: Any, test: datasets.Data, num_samples: int) -> dict[str, Any]:
    return judge(program, test.x, num_samples=num_samples)


def clusters(data: datasets.Dataset, test: datasets.Data, scale: Scale, seed: int) -> Any:
    """Train a Gaussian-mixture VAE, and compare its clusters with the classes."""
    program = GMVAE.assemble((784,), _LATENTS, num_clusters=_CLUSTERS, network=network)
    seconds = trained(program, data, AnalyticELBO(), scale.epochs_of_clusters, seed)
    q_y = evaluation.class_probabilities(program.model, program.guide, test.x)
    return {
        **agreement(q_y.argmax(-1), data.test.labels), **judged(program, test, scale.num_samples),
        "epochs": scale.epochs_of_clusters, "processor_seconds": seconds,
    }  # fmt: skip


def k_means(data: datasets.Dataset, test: datasets.Data, scale: Scale, seed: int) -> Any:
    """Train a plain VAE as often, and cluster the posterior means of the test data."""
    from sklearn.cluster import KMeans

    program = VAE.assemble((784,), _LATENTS, network=network)
    seconds = trained(program, data, AnalyticELBO(), scale.epochs_of_clusters, seed)
    means = evaluation.posterior_means(program.model, program.guide, test.x)["z"]
    found = KMeans(_CLUSTERS, n_init=10, random_state=seed).fit_predict(means.numpy())
    return {
        **agreement(torch.from_numpy(found), data.test.labels),
        **judged(program, test, scale.num_samples),
        "epochs": scale.epochs_of_clusters, "processor_seconds": seconds,
    }  # fmt: skip


def mixture(
    data: datasets.Dataset, test: datasets.Data, scale: Scale, seed: int, *, kind: str, epochs: int
) -> Any:
    """Train a VAE with a posterior of one kind."""
    seconds, program = train_mixture(kind, data, epochs, seed)
    return {
        **judged(program, test, scale.num_samples), "epochs": epochs, "processor_seconds": seconds
    }  # fmt: skip


def train_mixture(kind: str, data: datasets.Dataset, epochs: int, seed: int) -> tuple[float, VAE]:
    torch.manual_seed(seed)
    families: dict[str, Any] = {
        "stratified": partial(StratifiedMixture, num_components=_COMPONENTS),
        "score function": partial(MixtureOfNormals, num_components=_COMPONENTS),
    }
    objectives: dict[str, Objective] = {
        "stratified": ELBO(), "score function": RLOO(_COMPONENTS), "one normal": ELBO(_COMPONENTS),
    }  # fmt: skip
    posterior = {"posterior": families[kind]} if kind in families else {}
    program = VAE.assemble((784,), _LATENTS, network=network, **posterior)
    return trained(program, data, objectives[kind], epochs, seed), program


def main(data_root: Path, scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Train and judge every row; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        run = study.scale
        data = parts(data_root, run)
        test = observe_once(data.test, Binarize(255), seed=OBSERVATION_SEED + 2, device="cpu")
        rows = (data, test, run, seed)
        study.measure("GMVAE", partial(clusters, *rows), published=PUBLISHED["GMVAE"])
        study.measure("VAE and k-means", partial(k_means, *rows))
        # As many epochs as take the processor as long.
        one = {kind: _epoch(kind, data, seed) for kind in ("stratified", "score function")}
        epochs = run.epochs_of_mixtures
        as_long = max(1, round(epochs * one["stratified"] / one["score function"]))
        kinds = {"stratified": epochs, "score function": as_long}
        for kind, number in kinds.items():
            study.measure(f"mixture, {kind}", partial(mixture, *rows, kind=kind, epochs=number))
        study.measure("one normal", partial(mixture, *rows, kind="one normal", epochs=epochs))
        study.order(ORDER)
        study.show(COLUMNS)


def _epoch(kind: str, data: datasets.Dataset, seed: int) -> float:
    """Return the processor seconds of an epoch, without those of preparing and recording."""
    one, three = (train_mixture(kind, data, epochs, seed)[0] for epochs in (1, 3))
    return (three - one) / 2


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
