"""Latents as features: a program's encoder goes on as a plain classifier, where labels are few.

``Encoder(vae, x)`` is a module from data to posterior means, and ten lines of torch make a
classifier of it:

    classifier = nn.Sequential(Encoder(vae, x), nn.Linear(40, 10))
    optimizer = torch.optim.Adam(p for p in classifier.parameters() if p.requires_grad)
    for _ in range(100):
        loss = nn.functional.cross_entropy(classifier(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

``finetune`` compares it with a linear probe and with the same network from scratch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

import pyro_vae.evaluation as evaluation
from pyro_vae.arguments import at_the_door, shown
from pyro_vae.components import Conditional
from pyro_vae.datasets import Data
from pyro_vae.evaluation.batching import batches, check_counts
from pyro_vae.evaluation.estimates import Result
from pyro_vae.inference import Program
from pyro_vae.inference.program import exclusively
from pyro_vae.inference.terms import mean_of, rows_first

__all__ = ["Classifier", "Encoder", "FineTuned", "accuracy", "finetune"]

_ROWS = 1000


class Encoder(nn.Module):
    """The encoder of a program as a plain module, from data to the posterior means.

    It is a copy, with the units in which the encoder sees data. Where the one latent is drawn from
    what ``program.posterior`` returns, it is that module alone; elsewhere it is the whole guide, in
    which each latent is set to its mean.

    Args:
        program: A module with ``model`` and ``guide``, trained or not.
        x: A few data, ``[N, *event_shape]``, as the program observes them.
        frozen: Whether nothing of it is trained: then it stays in evaluation mode, so that no
            statistic of batch normalisation moves, and no unit drops out.

    Attributes:
        num_features: How many numbers the means of one datum are.

    Raises:
        ValueError: If a latent has no mean, or the guide takes more than data.
    """

    @at_the_door
    def __init__(self, program: nn.Module, x: Tensor, *, frozen: bool = False) -> None:
        super().__init__()
        guide = _Guide(copy.deepcopy(program))
        expected = guide.looked_at(x[:2])
        self.num_features, self.frozen = expected.shape[1], frozen
        posterior = getattr(guide.program, "posterior", None)
        self.means: nn.Module = guide
        if isinstance(posterior, Conditional) and _is_same(posterior, x[:2], expected):
            self.means = _Posterior(posterior)
        self.requires_grad_(not frozen)
        self.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the posterior means of ``x``, ``[N, *event_shape]``, flat: ``[N, D]``."""
        features: Tensor = self.means(x)
        return features

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of training; a frozen encoder stays in that of evaluation."""
        super().train(mode and not self.frozen)
        return self


class _Posterior(nn.Module):
    """The means of one module's distributions."""

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, D]``."""
        return _mean("z", self.posterior(x)).reshape(len(x), -1)


class _Guide(nn.Module):
    """The means of all latents of a guide, each given the means of those before it."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        if not (callable(getattr(program, "model", None)) and callable(program.guide)):
            raise ValueError(f"{shown(program)} is no program: it has no model and guide")
        self.program = program
        fields = Program(program.model, program.guide).on(("x", "labels", "covariates")).fields
        if len(fields) > 1:
            raise ValueError(
                f"{shown(program)} takes {fields[1]} beside x: its means are no features of x alone"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, D]``."""
        program: Any = self.program
        with Program(program.model, program.guide).running(), _AtMeans() as means:
            program.guide(x)
        return torch.cat([mean.reshape(len(x), -1) for mean in means.found], 1)

    def looked_at(self, x: Tensor) -> Tensor:
        """Return the same, and leave no trace of the run."""
        program: Any = self.program
        with Program(program.model, program.guide).evaluating(seed=0):
            found: Tensor = self(x)
        return found


class _AtMeans(Messenger):
    """Sets each latent to its mean; notes the means, ``[N, ...]``, in the guide's order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        if not (poutine.util.site_is_subsample(msg) or msg["is_observed"]):
            msg["value"] = _mean(msg["name"], msg["fn"])
            self.found.append(rows_first(msg["value"], len(msg["fn"].event_shape)))


def _mean(site: str, fn: Any) -> Tensor:
    mean = mean_of(fn)
    if mean is None:
        raise ValueError(
            f"the guide's site {site!r} has a {type(fn).__name__} without a mean, which would be "
            "its feature; take a posterior such as DiagonalNormal"
        )
    return mean


@torch.no_grad()
def _is_same(posterior: nn.Module, x: Tensor, expected: Tensor) -> bool:
    modes = [module.training for module in posterior.modules()]
    posterior.eval()
    try:
        found: Tensor = _Posterior(posterior)(x)
    except (ValueError, RuntimeError, TypeError):  # it is given something else than data
        return False
    finally:
        for module, mode in zip(posterior.modules(), modes, strict=True):
            module.training = mode
    return found.shape == expected.shape and torch.equal(found, expected)


class Classifier(nn.Module):
    """An encoder followed by a linear layer: logits of the classes.

    Args:
        encoder: From data to ``encoder.num_features`` numbers.
        num_classes: The number of classes.
    """

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``[N, num_classes]``."""
        logits: Tensor = self.head(self.encoder(x))
        return logits

    @torch.no_grad()
    def probe(self, x: Tensor, labels: Tensor) -> None:
        """Set the linear layer to the logistic regression of the labels on the features."""
        self.eval()
        features = torch.cat([self.encoder(rows) for (rows,) in batches((x,), _ROWS)])
        weight, bias = evaluation.logistic_regression(features, labels)
        self.head.weight.zero_()
        self.head.bias.fill_(-math.inf)  # of classes without a label
        present = labels.unique()
        self.head.weight[present] = weight.to(self.head.weight)
        self.head.bias[present] = bias.to(self.head.bias)

    def fit(self, x: Tensor, labels: Tensor, *, epochs: int, batch_size: int, lr: float) -> None:
        """Minimise the cross-entropy of labelled data by Adam, under a cosine of its rate."""
        self.train()
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
        for _ in range(epochs):
            for rows in torch.randperm(len(x), device=x.device).split(batch_size):
                if len(rows) == 1 < len(x):
                    continue  # batch normalisation has nothing to say of a single row
                loss = nn.functional.cross_entropy(self(x[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(classifier: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the share of ``x``, ``[N, *event_shape]``, whose label ``[N]`` is predicted."""
    classifier.eval()
    right = [
        (classifier(rows).argmax(1) == known).double()
        for rows, known in batches((x, labels), _ROWS)
    ]
    return torch.cat(right).mean().item()


@dataclass(frozen=True, eq=False, repr=False)
class FineTuned(Result):
    """Test accuracies, 0 to 1: means over draws of the labelled data, with standard errors.

    Attributes:
        finetuned: Of the encoder, trained jointly with a linear layer that starts at the probe.
        probe: Of a linear layer on the frozen encoder's means, by logistic regression.
        scratch: Of the same network from new weights.
        labels_per_class: How many labelled data of each class there were.
        num_repeats: How many draws of them.
        num_test: How many test data.
    """

    finetuned: evaluation.Estimate
    probe: evaluation.Estimate
    scratch: evaluation.Estimate
    labels_per_class: int
    num_repeats: int
    num_test: int


@at_the_door
@exclusively
def finetune(
    program: nn.Module,
    train: Data,
    test: Data,
    *,
    fresh: Callable[[int], nn.Module],
    labels_per_class: int = 10,
    num_repeats: int = 5,
    epochs: int = 100,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> FineTuned:
    """Compare what a trained encoder is worth where few data are labelled.

    Each repetition draws anew which data are labelled; the three classifiers have the same. Nothing
    but their number of classes is told by the test data.

    Args:
        program: The trained program; it is left as it is.
        train: Training data with labels, ``x`` as the program observes it.
        test: Test data with labels, likewise.
        fresh: Returns the program as it was before training, given a seed.
        labels_per_class: How many training data of each class are labelled; all that there are,
            where a class has fewer.
        num_repeats: How many draws of them.
        epochs: Passes over the labelled data.
        batch_size: Labelled data per step.
        lr: Adam's learning rate.
        seed: Of the draws and of the new weights; the global random state is left as it was.

    Raises:
        ValueError: If there are no labels or one class alone, a count is less than 1, or as
            ``Encoder`` does.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling,
        2014), for features of few labelled data
        Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution (Kumar,
        Raghunathan, Jones, Ma & Liang, 2022), for the start at the probe
    """
    check_counts(
        labels_per_class=labels_per_class, num_repeats=num_repeats, epochs=epochs,
        batch_size=batch_size,
    )  # fmt: skip
    train, test = _labelled("training", train), _labelled("test", test)
    num_classes = 1 + int(torch.cat([train.labels, test.labels]).max())
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    found = []
    with torch.random.fork_rng():
        for repeat in range(seed, seed + num_repeats):
            torch.manual_seed(repeat)
            few = train[_drawn(train.labels.cpu(), labels_per_class)]
            programs = (program, fresh(repeat).to(few.x.device))
            found.append(_accuracies(*programs, few, test, num_classes, options))
    tuned, probe, scratch = (_over_draws(column) for column in zip(*found, strict=True))
    return FineTuned(tuned, probe, scratch, labels_per_class, num_repeats, len(test))


def _accuracies(
    program: nn.Module, fresh: nn.Module, few: Data, test: Data, num_classes: int, options: Any
) -> tuple[float, float, float]:
    """Return those of the fine-tuned encoder, of the probe, and of the network from scratch."""
    tuned = Classifier(Encoder(program, few.x), num_classes).to(few.x.device)
    tuned.probe(few.x, few.labels)
    probe = accuracy(tuned, test.x, test.labels)
    tuned.fit(few.x, few.labels, **options)
    scratch = Classifier(Encoder(fresh, few.x), num_classes).to(few.x.device)
    scratch.fit(few.x, few.labels, **options)
    return accuracy(tuned, test.x, test.labels), probe, accuracy(scratch, test.x, test.labels)


def _labelled(part: str, data: Data) -> Any:
    """Return the rows that have a label."""
    if data.labels is None or not bool(data.labelled.any()):
        raise ValueError(f"the {part} data have no labels, which a classifier learns: name some")
    rows = data[data.labelled.nonzero().flatten().cpu()]
    if part == "training" and rows.labels is not None and len(rows.labels.unique()) < 2:
        raise ValueError(f"the {part} data have one class alone: a classifier needs two or more")
    return rows


def _drawn(labels: Tensor, labels_per_class: int) -> Tensor:
    """Return the numbers of randomly drawn rows, as many of each class."""
    order = torch.randperm(len(labels))
    chosen = [order[labels[order] == each][:labels_per_class] for each in labels.unique()]
    return torch.cat(chosen)


def _over_draws(values: Sequence[float]) -> evaluation.Estimate:
    return evaluation.Estimate.of(torch.tensor(values, dtype=torch.float64), unit="")
