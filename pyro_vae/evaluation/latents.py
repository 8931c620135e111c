"""Posterior means, active units, and linear probes of the latents."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import at_the_door, shown
from pyro_vae.evaluation.batching import batches, check_counts, pairs_at_once
from pyro_vae.evaluation.estimates import Result
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.terms import LatentSite, SiteTerms, site_terms

__all__ = [
    "UnitActivity",
    "embed",
    "linear_probe",
    "logistic_regression",
    "posterior_means",
    "unit_activity",
]

_LARGEST_EMBEDDING = 2000
_PROBE_STEPS = 500


@dataclass(frozen=True, eq=False, repr=False)
class UnitActivity(Result):
    r"""How much each unit of a latent site is used; units in the order of its flattened event.

    Attributes:
        kl_nats: The KL of each unit, averaged over the data, ``[num_units]``: in closed form where
            there is one, by Monte Carlo elsewhere; None where a unit has no KL of its own, as
            under a flow.
        activity: :math:`A_u = \mathrm{Var}_x(\mathrm{E}_{q(z_u \mid x)}[z_u])`, ``[num_units]``.
        threshold: A unit above it is active.
    """

    kl_nats: Tensor | None
    activity: Tensor
    threshold: float

    @property
    def num_active(self) -> int:
        """Return how many units are active."""
        return int((self.activity > self.threshold).sum())


@takes_program
def posterior_means(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_samples: int = 64,
    batch_size: int = 1000,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the posterior mean of each latent site, ``[N, *event_shape]``.

    Exact for a single site whose distribution has a mean. Otherwise the average over samples: of
    the conditional means where they exist, of the values elsewhere.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_samples: For each datum, where samples are needed.
        batch_size: How many data at once; fewer where the samples take the room.
        seed: Of the samples; the random state outside is not touched.

    Raises:
        ValueError: If a count is less than 1, ``x`` is empty, or the program breaks the
            convention.
    """
    check_counts(num_samples=num_samples, batch_size=batch_size)
    args, count = (x, *fields), 1 if _is_exact(probe) else num_samples
    found: dict[str, list[Tensor]] = {name: [] for name in probe.layout.latents}
    with probe.program.evaluating(seed=seed):
        for batch in batches(args, _rows(probe, args, count, batch_size)):
            terms = _guide_alone(probe, batch, count)
            for name, means in found.items():
                means.append(_means(terms, name).mean(0))
    return {name: torch.cat(means) for name, means in found.items()}


@takes_program
def unit_activity(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    threshold: float = 0.01,
    num_samples: int = 64,
    batch_size: int = 1000,
    seed: int = 0,
) -> dict[str, UnitActivity]:
    r"""Return KL and activity of every unit of each latent site.

    .. math:: A_u = \mathrm{Cov}_x\left(\mathrm{E}_{u \sim q(u \mid x)}[u]\right)

    Where a posterior mean is itself an average over samples, the variance that this average has
    by chance is subtracted: it would otherwise make every unused unit look active.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        threshold: A unit whose activity is above it is active.
        num_samples: For each datum, where samples are needed.
        batch_size: How many data at once; fewer where the samples take the room.
        seed: Of the samples; the random state outside is not touched.

    Raises:
        ValueError: As in ``posterior_means``.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """
    check_counts(num_samples=num_samples, batch_size=batch_size)
    args, count = (x, *fields), 1 if _is_exact(probe) else num_samples
    found: dict[str, list[_UnitSums]] = {name: [] for name in probe.layout.latents}
    with probe.program.evaluating(seed=seed):
        for batch in batches(args, _rows(probe, args, count, batch_size)):
            terms = site_terms(
                probe.program, probe.layout, *batch, num_particles=count, bounded=False
            )
            for name, parts in found.items():
                parts.append(_unit_sums(terms, name))
    return {name: _activity(parts, threshold) for name, parts in found.items()}


def _classes(part: str, labels: Tensor) -> Tensor:
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    if labels.dim() != 1 or not whole:
        raise ValueError(
            f"{part}_labels is {shown(labels)}: expected one whole number for each datum"
        )
    return labels.cpu().long()


@at_the_door
def linear_probe(
    train_means: Tensor | Mapping[str, Tensor],
    train_labels: Tensor,
    test_means: Tensor | Mapping[str, Tensor],
    test_labels: Tensor,
) -> float:
    """Return the test accuracy, 0 to 1, of a logistic regression from latents to labels.

    Args:
        train_means: ``[N, ...]``, or one such tensor for each site, as from ``posterior_means``.
        train_labels: Classes, ``[N]``.
        test_means: Likewise.
        test_labels: Likewise.

    Raises:
        ValueError: If there are not as many labels as data, or only one class.
    """
    train, train_classes = _flat(train_means), _classes("train", train_labels)
    test, test_classes = _flat(test_means), _classes("test", test_labels)
    for part, means, classes in (("train", train, train_classes), ("test", test, test_classes)):
        if len(means) != len(classes):
            raise ValueError(f"there are {len(classes)} {part} labels for {len(means)} latents")
    if len(train_classes.unique()) < 2:
        raise ValueError(
            f"all {len(train_classes)} train labels are {train_classes[:1].tolist()}: "
            "a probe needs two classes or more"
        )
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = _fitted(make_pipeline(StandardScaler(), _regression()), train, train_classes)
    return float(probe.score(test.numpy(), test_classes.numpy()))


@at_the_door
def logistic_regression(
    means: Tensor | Mapping[str, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logistic regression of few labels: logits are ``means @ weight.T + bias``.

    Unlike in ``linear_probe``, units have one scale together, the root of their mean variance: of
    few data, what an unused unit has by chance would otherwise count as much as a used one.

    Args:
        means: ``[N, ...]``, or one such tensor for each site, as from ``posterior_means``.
        labels: Classes, ``[N]``.

    Returns:
        Weights, ``[C, D]``, and biases, ``[C]``, of the C classes that occur, in their order.
    """
    flat = _flat(means)
    loc, scale = flat.mean(0), flat.var(0, correction=0).mean().sqrt()
    scale = scale if scale > 0 else torch.ones_like(scale)
    regression = _fitted(_regression(), (flat - loc) / scale, _classes("train", labels))
    weight, bias = (torch.from_numpy(x) for x in (regression.coef_, regression.intercept_))
    if len(regression.classes_) == 2:  # one logit, of the second against the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / scale
    return weight, bias - weight @ loc.to(weight)


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=_PROBE_STEPS)


def _fitted(probe: Any, means: Tensor, classes: Tensor) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Classes that a hyperplane separates have no finite optimum; the accuracy is reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(means.numpy(), classes.numpy())


@at_the_door
def embed(means: Tensor | Mapping[str, Tensor], *, seed: int = 0) -> Tensor:
    """Return latents as points of the plane, ``[N, 2]``, on the CPU.

    Two numbers stay as they are, one gets a zero beside it, more are embedded by t-SNE; of fewer
    than five points the first two numbers are taken.

    Args:
        means: ``[N, ...]``, or one such tensor for each site, as from ``posterior_means``.
        seed: Of t-SNE.

    Raises:
        ValueError: If there are more than 2,000 points for t-SNE, which takes minutes then.

    References:
        Visualizing Data using t-SNE (van der Maaten & Hinton, 2008)
    """
    points = _flat(means)
    if points.shape[1] <= 2 or len(points) < 5:
        return torch.nn.functional.pad(points[:, :2], (0, max(0, 2 - points.shape[1])))
    if len(points) > _LARGEST_EMBEDDING:
        raise ValueError(
            f"t-SNE of {len(points):,} points takes minutes: "
            f"give {_LARGEST_EMBEDDING:,} of them or fewer"
        )
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    # Points that are all equal, as of a collapsed posterior, have no principal axes.
    init = "pca" if bool((points != points[0]).any()) else "random"
    tsne = TSNE(perplexity=perplexity, init=init, random_state=seed)
    return torch.from_numpy(tsne.fit_transform(points.numpy()))


def _rows(probe: Probe, args: tuple[Tensor, ...], num_samples: int, batch_size: int) -> int:
    pairs = pairs_at_once(probe.program, probe.layout, *args)
    return max(1, min(batch_size, pairs // (num_samples if probe.layout.vectorizes else 1)))


def _is_exact(probe: Probe) -> bool:
    """Say whether one run gives the posterior's exact means and, where there are any, KLs."""
    if len(probe.layout.latents) > 1:
        return False
    (site,) = next(iter(probe.terms.latents.values()))
    with probe.looking():
        return site.mean() is not None and site.has_exact_units()


def _guide_alone(probe: Probe, args: tuple[Tensor, ...], num_samples: int) -> SiteTerms:
    """Run the guide; return a table with its latents, and nothing of the model."""
    layout, nesting = probe.layout, probe.layout.max_plate_nesting
    together = num_samples > 1 and layout.vectorizes
    size = num_samples if together else 1
    found: dict[str, tuple[LatentSite, ...]] = dict.fromkeys(layout.latents, ())
    for _ in range(1 if together else num_samples):
        with pyro.plate("particles", size, dim=-1 - nesting) if together else nullcontext():
            nodes = poutine.trace(probe.program.guide).get_trace(*args).nodes
        for name in found:
            found[name] += (LatentSite(nodes[name], None, (size, len(args[0])), nesting),)
    return SiteTerms({}, {}, {}, latents=found)


def _means(terms: SiteTerms, name: str) -> Tensor:
    """Return each run's conditional means, ``[S, B, ...]``; the values where there are none."""
    sites = terms.latents[name]
    found = [mean for site in sites if (mean := site.mean()) is not None]
    means = torch.cat(found if len(found) == len(sites) else [site.value() for site in sites])
    return means if means.dtype.is_floating_point else means.to(torch.get_default_dtype())


@dataclass(frozen=True, eq=False)
class _UnitSums:
    """Of a batch: posterior means, their variance by chance, and KLs, ``[B, num_units]``."""

    means: Tensor
    chance: Tensor
    kl: Tensor | None


def _unit_sums(terms: SiteTerms, name: str) -> _UnitSums:
    means = _flat_units(_means(terms, name))
    num_samples = len(means)
    chance = means.var(0) / num_samples if num_samples > 1 else torch.zeros_like(means[0])
    kl = terms.unit_kl(name)
    return _UnitSums(means.mean(0), chance, None if kl is None else _flat_units(kl).mean(0))


def _flat_units(value: Tensor) -> Tensor:
    """Bring ``[S, B, *event_shape]`` into the shape ``[S, B, num_units]``."""
    return value.reshape(*value.shape[:2], -1)


def _activity(parts: list[_UnitSums], threshold: float) -> UnitActivity:
    means = torch.cat([part.means for part in parts])
    chance = torch.cat([part.chance for part in parts]).mean(0) * (1 - 1 / len(means))
    kls = [part.kl for part in parts if part.kl is not None]
    return UnitActivity(
        kl_nats=torch.cat(kls).mean(0) if len(kls) == len(parts) else None,
        activity=(means.var(0, correction=0) - chance).clamp(min=0),
        threshold=threshold,
    )


def _flat(means: Tensor | Mapping[str, Tensor]) -> Tensor:
    parts = list(means.values()) if isinstance(means, Mapping) else [means]
    flat = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
    return flat.detach().cpu()
