"""Do clusters of a Gaussian-mixture VAE find digits, and do gradients train a mixture posterior?

    python experiments/clusters.py --scale smoke|cpu|paper
    python experiments/clusters.py --questions posteriors --name clusters_posteriors

Two questions, on the digits that scikit-learn bundles (1,797 scans of 8x8, of which 1,437 train).

First, the clusters of q(y | x) of a Gaussian-mixture VAE, exact in the cluster, beside k-means on
the latents of a plain VAE: both are held against the classes of all scans, by accuracy under the
best match of clusters and classes, and by normalised mutual information. As in Variational Deep
Embedding (Jiang et al., 2017), the mixture may start from k-means on the latents of the plain VAE:
then the guide learns it before the model moves, whose decoder is that of the plain VAE. The paper
has 94.46 % on MNIST, from a stacked autoencoder; no number here compares with it.

Second, a mixture of four normals as the posterior, each component with a particle and gradients
(Automatic Differentiation Variational Inference with Mixtures, Morningstar et al., 2021), beside
the same mixture trained by score functions with as many particles for as much processor time, and
beside a single normal with as many particles. How many epochs the score functions get is decided
by short runs of both. log p(x) and bounds are of the 180 test scans; the weights' entropy says
whether a posterior is still a mixture, whose entropy is log 4 = 1.39 nats at most.

Likelihoods are binomial, networks two layers of 128, batch 100, Adam at 1e-3 whose rate falls as
half a cosine wave.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, chosen, judge
from torch import Tensor

from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.components import MLP, Binomial, MixtureOfNormals, StratifiedMixture
from pyro_vae.distributions import raw_at_scale
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import ELBO, RLOO, AnalyticELBO, Frozen, Objective
from pyro_vae.models import GMVAE

_LATENTS, _COMPONENTS, _CLUSTERS = (10,), 4, 10
_PILOT = (2, 12)  # epochs; the first ever is for what a process does once
network = partial(MLP, hidden=(128, 128))
likelihood = partial(Binomial, total_count=16)


class Scale(NamedTuple):
    """How much is run: epochs of each program, and those in which the guide learns clusters."""

    epochs: int
    guide_epochs: int
    num_samples: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(1, 1, 10),
    "cpu": Scale(80, 20, 200),
    "paper": Scale(300, 50, 5_000),
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
    "weights_entropy_nats": "entropy of weights, nats",
    "epochs": "epochs",
    "processor_seconds": "processor, s",
}


class Digits(NamedTuple):
    """The data: the set that is trained on, and all scans with their classes."""

    split: datasets.Dataset
    x: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> Digits:
        """Return them as scikit-learn bundles them."""
        split = datasets.load("digits")
        parts = split.parts.values()
        x, labels = (torch.cat([getattr(p, name) for p in parts]) for name in ("x", "labels"))
        return cls(split, x.float(), labels)


def trained(
    model: Any, guide: Any, data: Digits, objective: Objective, epochs: int, seed: int
) -> float:
    """Train a program; return the processor seconds that it took."""
    start = time.process_time()
    fit(
        model, guide, data.split, objective=objective, epochs=epochs, batch_size=100,
        optim=partial(adam, lr=1e-3), weights="last", seed=seed, device="cpu", engine="recorded",
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    return time.process_time() - start


def judged(program: Any, data: Digits, scale: Scale, epochs: int, seconds: float) -> dict[str, Any]:
    program.eval()
    test = data.split.test.x.float()
    found = judge(program, test, num_samples=scale.num_samples)
    return {**found, "epochs": epochs, "processor_seconds": seconds}


def agreement(found: Tensor, labels: Tensor) -> dict[str, float]:
    """Return how clusters agree with classes."""
    return {
        "accuracy_percent": 100 * evaluation.cluster_accuracy(found, labels),
        "information": evaluation.normalized_mutual_information(found, labels),
    }


class Plain(NamedTuple):
    """A plain VAE, its k-means clusters of all scans, and what they and it come to."""

    vae: VAE
    means: Tensor
    clusters: Tensor
    measured: dict[str, Any]


def plain(data: Digits, scale: Scale, seed: int) -> Plain:
    """Train a plain VAE, and cluster its posterior means."""
    from sklearn.cluster import KMeans

    vae = VAE.assemble(data.split.event_shape, _LATENTS, network=network, likelihood=likelihood)
    seconds = trained(vae.model, vae.guide, data, AnalyticELBO(), scale.epochs, seed)
    measured = judged(vae, data, scale, scale.epochs, seconds)
    means = evaluation.posterior_means(vae.model, vae.guide, data.x)["z"]
    found = KMeans(_CLUSTERS, n_init=10, random_state=seed).fit_predict(means.numpy())
    clusters = torch.from_numpy(found)
    return Plain(vae, means, clusters, {**measured, **agreement(clusters, data.labels)})


def mixture_model(data: Digits, scale: Scale, seed: int, start: Plain | None) -> dict[str, Any]:
    """Train a Gaussian-mixture VAE, from k-means or from nothing; compare clusters and classes."""
    torch.manual_seed(seed)
    program = GMVAE.assemble(
        data.split.event_shape, _LATENTS, num_clusters=_CLUSTERS, network=network,
        likelihood=likelihood,
    )  # fmt: skip
    seconds = 0.0
    if start is not None:
        program.likelihood = start.vae.likelihood
        take_clusters(program, start)
        held = Frozen(program.likelihood, program.prior, program.classes)
        seconds += trained(
            held(program.model), program.guide, data, AnalyticELBO(), scale.guide_epochs, seed
        )
    objective = AnalyticELBO()
    seconds += trained(program.model, program.guide, data, objective, scale.epochs, seed)
    q_y = evaluation.class_probabilities(program.model, program.guide, data.x)
    return {
        **judged(program, data, scale, scale.epochs, seconds),
        **agreement(q_y.argmax(-1), data.labels),
    }


@torch.no_grad()
def take_clusters(program: GMVAE, start: Plain) -> None:
    """Let p(z | y) be the normals of the clusters."""
    rows = []
    for each in range(_CLUSTERS):
        means = start.means[start.clusters == each]
        rows.append(torch.cat([means.mean(0), raw_at_scale(means.std(0))]))
    (table,) = program.prior.network.layers
    table.weight.copy_(torch.stack(rows).T)
    for name, parameter in program.prior.named_parameters():
        if parameter is not table.weight:
            assert "bias" in name or "offset" in name
            parameter.zero_()


def train_mixture(kind: str, data: Digits, epochs: int, seed: int) -> tuple[float, VAE]:
    """Train a VAE whose posterior is a mixture with gradients, one without, or one normal."""
    torch.manual_seed(seed)
    families: dict[str, Any] = {
        "stratified": partial(StratifiedMixture, num_components=_COMPONENTS),
        "score function": partial(MixtureOfNormals, num_components=_COMPONENTS),
    }
    objectives: dict[str, Objective] = {
        "stratified": ELBO(), "score function": RLOO(_COMPONENTS), "one normal": ELBO(_COMPONENTS),
    }  # fmt: skip
    posterior = {"posterior": families[kind]} if kind in families else {}
    vae = VAE.assemble(
        data.split.event_shape, _LATENTS, network=network, likelihood=likelihood, **posterior
    )
    return trained(vae.model, vae.guide, data, objectives[kind], epochs, seed), vae


def mixture(kind: str, data: Digits, scale: Scale, seed: int, epochs: int) -> dict[str, Any]:
    seconds, vae = train_mixture(kind, data, epochs, seed)
    found = judged(vae, data, scale, epochs, seconds)
    weights = getattr(vae.posterior(data.split.test.x.float()), "mixture_distribution", None)
    if weights is not None:
        found["weights_entropy_nats"] = weights.entropy().mean().item()
    return found


def epochs_of_equal_time(data: Digits, epochs: int, seed: int) -> int:
    """Return how many epochs of score functions take as long as so many with gradients."""

    def of_an_epoch(kind: str) -> float:
        _, short, long = (train_mixture(kind, data, num, seed)[0] for num in (1, *_PILOT))
        return (long - short) / (_PILOT[1] - _PILOT[0])

    return max(1, round(epochs * of_an_epoch("stratified") / of_an_epoch("score function")))


def clusters(study: Study[Scale], data: Digits) -> None:
    """Measure the rows of the first question."""
    run, seed = study.scale, study.seed
    start = plain(data, run, seed)
    study.keep("VAE and k-means", start.measured)
    study.measure("GMVAE from k-means", partial(mixture_model, data, run, seed, start))
    study.measure("GMVAE from nothing", partial(mixture_model, data, run, seed, None))


def posteriors(study: Study[Scale], data: Digits) -> None:
    """Measure the rows of the second question."""
    run, seed = study.scale, study.seed
    equal = epochs_of_equal_time(data, run.epochs, seed)
    for kind, epochs in (("stratified", run.epochs), ("score function", equal)):
        study.measure(f"mixture, {kind}", partial(mixture, kind, data, run, seed, epochs))
    study.measure("one normal", partial(mixture, "one normal", data, run, seed, run.epochs))


QUESTIONS = {"clusters": clusters, "posteriors": posteriors}


def main(
    scale: ScaleName = "cpu", questions: str = "*", seed: int = 0, name: str | None = None
) -> None:
    """Train and judge the rows of each question; print the table, write record and figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        data = Digits.load()
        for measure in chosen(QUESTIONS, questions).values():
            measure(study, data)
        study.order(ORDER)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
