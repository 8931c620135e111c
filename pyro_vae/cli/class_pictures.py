"""Classes that a run's program guesses: how they agree with labels, and their pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli.runs import Run
from pyro_vae.datasets import Data
from pyro_vae.inference import Probe
from pyro_vae.report import plots
from pyro_vae.report.confusion import confusion_matrix

__all__ = ["agreement", "analogies_of", "confusion_of", "names_of", "samples_of"]

_DRAWN_CLASSES = 20


def names_of(run: Run, probe: Probe) -> list[str] | None:
    """Return what the values of the latent are called that is the class; None without one."""
    strata = probe.layout.strata
    sites = [stratum for stratum in strata.sites if not stratum.of_components]
    if not sites or strata.obstacle is not None:
        return None
    if run.guesses_classes and run.data.classes is not None:
        return list(run.data.classes)
    return [f"cluster {number}" for number in range(sites[0].num)]


def agreement(run: Run, rows: Data) -> dict[str, Any]:
    """Return how the classes that are guessed for the test data agree with their labels."""
    found = _guessed(run, rows)
    if found is None:
        return {}
    guessed, labels = found
    if run.guesses_classes:
        given = labels >= 0
        return {"test_accuracy": (guessed == labels)[given].double().mean().item()}
    return {
        "cluster_accuracy": evaluation.cluster_accuracy(guessed, labels),
        "cluster_information": evaluation.normalized_mutual_information(guessed, labels),
    }


def confusion_of(run: Run, rows: Data) -> Any:
    """Draw how many data of each class are in each cluster; None where nothing is guessed."""
    found = _guessed(run, rows)
    if found is None:
        return None
    counts = evaluation.confusion(*found)
    names = run.data.classes or tuple(map(str, range(len(counts))))
    columns = names if run.guesses_classes else tuple(map(str, range(counts.shape[1])))
    return confusion_matrix(
        counts, names[: len(counts)], columns[: counts.shape[1]],
        title="Classes and guesses" if run.guesses_classes else "Classes and clusters",
        axis_labels=("class", "guess" if run.guesses_classes else "cluster"),
    )  # fmt: skip


def analogies_of(run: Run, rows: Data, shaped: Callable[[Tensor], Tensor], limits: Any) -> Any:
    """Draw each datum, and beside it the same style as every class; None without given classes."""
    probe = Probe(run.bound, *run.arguments(rows))
    names = names_of(run, probe)
    if names is None or not run.guesses_classes or len(names) > _DRAWN_CLASSES:
        return None
    images = shaped(evaluation.analogies(run.program, rows).cpu())
    data = rows.x.cpu().float().reshape(len(rows), 1, *images.shape[2:])
    return plots.image_grid(
        torch.cat([data, images], 1), title="One style, every class",
        column_labels=["data", *names], limits=limits,
    )  # fmt: skip


def samples_of(run: Run, rows: Data, shaped: Callable[[Tensor], Tensor], limits: Any) -> Any:
    """Draw samples of each class or cluster, a row for each; None without one."""
    names = names_of(run, Probe(run.bound, *run.arguments(rows)))
    if names is None or len(names) > _DRAWN_CLASSES:
        return None
    images = shaped(evaluation.class_samples(run.program, rows).cpu())
    return plots.image_grid(images, title="Samples of each", row_labels=names, limits=limits)


def _guessed(run: Run, rows: Data) -> tuple[Tensor, Tensor] | None:
    """Return the likeliest class of each test datum and its label; None without either."""
    labels = run.data.test.labels
    if labels is None or not bool((labels >= 0).any()):
        return None
    if names_of(run, Probe(run.bound, *run.arguments(rows))) is None:
        return None
    return evaluation.class_probabilities(run.program, rows).argmax(-1).cpu(), labels.cpu()
