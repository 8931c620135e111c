"""Posterior means, active units, and linear probes of the latents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.arguments import at_the_door, shown
from pyro_vae.evaluation.batching import batches, check_counts, checked, pairs_at_once
from pyro_vae.evaluation.doors import judges
from pyro_vae.inference.program import Layout, Program

__all__ = [
    "UnitActivity",
    "embed",
    "independent_units",
    "linear_probe",
    "mean_of",
    "posterior_means",
    "rows_first",
    "unit_activity",
]

_LARGEST_EMBEDDING = 2000
_PROBE_STEPS = 500


@dataclass(frozen=True, eq=False)
class UnitActivity:
    r"""How much each unit of a latent site is used; units in the order of its flattened event.

    Attributes:
        kl_nats: The KL of each unit, averaged over the data, ``[num_units]``: in closed form
            where a single latent site has one, by Monte Carlo where prior and posterior are
            independent over units; None where a unit has no KL of its own, as under a flow.
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


@judges
def posterior_means(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *labels: Tensor,
    num_samples: int = 64,
    batch_size: int = 1000,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the posterior mean of each latent site, ``[N, *event_shape]``.

    Exact for a single site whose distribution has a mean. Otherwise the average over samples: of
    the conditional means where they exist, of the values elsewhere.

    Args:
        model: Declares p(x, z).
        guide: Declares q(z | x).
        x: Data, ``[N, *event_shape]``, on the device of the program.
        labels: ``[N, ...]`` each, where the program takes them.
        num_samples: For each datum, where samples are needed.
        batch_size: How many data at once; fewer where the samples take the room.
        seed: Of the samples; the random state outside is not touched.

    Raises:
        ValueError: If a count is less than 1, ``x`` is empty, or the program breaks the
            convention.
    """
    args, program, layout = _start(model, guide, x, labels, num_samples, batch_size)
    found: dict[str, list[Tensor]] = {name: [] for name in layout.latents}
    with program.evaluating(seed=seed):
        count = 1 if _is_exact(program, layout, args) else num_samples
        for batch in batches(args, _rows(program, layout, args, count, batch_size)):
            runs = _run(program, layout, batch, count, with_model=False)
            for name, means in found.items():
                means.append(runs.means(name).mean(0))
    return {name: torch.cat(means) for name, means in found.items()}


@judges
def unit_activity(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *labels: Tensor,
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
        model: Declares p(x, z).
        guide: Declares q(z | x).
        x: Data, ``[N, *event_shape]``, on the device of the program.
        labels: ``[N, ...]`` each, where the program takes them.
        threshold: A unit whose activity is above it is active.
        num_samples: For each datum, where samples are needed.
        batch_size: How many data at once; fewer where the samples take the room.
        seed: Of the samples; the random state outside is not touched.

    Raises:
        ValueError: As in ``posterior_means``.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """
    args, program, layout = _start(model, guide, x, labels, num_samples, batch_size)
    found: dict[str, list[_UnitSums]] = {name: [] for name in layout.latents}
    with program.evaluating(seed=seed):
        count = 1 if _is_exact(program, layout, args) else num_samples
        for batch in batches(args, _rows(program, layout, args, count, batch_size)):
            runs = _run(program, layout, batch, count)
            for name, parts in found.items():
                parts.append(_unit_sums(runs, name))
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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

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
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_PROBE_STEPS))
    with warnings.catch_warnings():
        # Classes that a hyperplane separates have no finite optimum; the accuracy is reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train.numpy(), train_classes.numpy())
    return float(probe.score(test.numpy(), test_classes.numpy()))


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


def mean_of(fn: Any) -> Tensor | None:
    """Return the mean of a distribution; None where it has none or the mean is not finite."""
    try:
        mean = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) else None


def independent_units(fn: Any) -> Any | None:
    """Return the distribution of the single numbers; None where they are not independent."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return None if fn.event_shape else fn


def rows_first(value: Tensor, event_dim: int, *, leading: int = 0) -> Tensor:
    """Move the dimension of the data, last before the event, behind ``leading`` others."""
    return value.movedim(-1 - event_dim, leading)


def _start(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    labels: tuple[Tensor, ...],
    num_samples: int,
    batch_size: int,
) -> tuple[tuple[Tensor, ...], Program, Layout]:
    check_counts(num_samples=num_samples, batch_size=batch_size)
    args = checked(x, *labels)
    program = Program(model, guide)
    return args, program, program.check(*args)


def _rows(
    program: Program, layout: Layout, args: tuple[Tensor, ...], num_samples: int, batch_size: int
) -> int:
    pairs = pairs_at_once(program, layout, *args)
    return max(1, min(batch_size, pairs // (num_samples if layout.vectorizes else 1)))


@dataclass(frozen=True)
class _Runs:
    """Traces of model and guide, one for each sample.

    Attributes:
        models: Of the model; None where it was not run.
        guides: Of the guide.
        stacked: There is one trace, which holds all samples in its first dimension.
        alone: There is one latent site.
    """

    models: list[Any]
    guides: list[Any]
    stacked: bool
    alone: bool

    def part(self, name: str, part: Callable[[int], Tensor | None]) -> Tensor | None:
        """Return a part of the site in each run as ``[S, B, ...]``; None where it has none."""
        parts = [part(run) for run in range(len(self.guides))]
        event_dim = len(self.guides[0].nodes[name]["fn"].event_shape)
        found = [
            rows_first(p, event_dim, leading=int(self.stacked)) for p in parts if p is not None
        ]
        if len(found) < len(parts):
            return None
        return found[0] if self.stacked else torch.stack(found)

    def means(self, name: str) -> Tensor:
        """Return the conditional means of each run, the values where there are none."""
        sites = [guide.nodes[name] for guide in self.guides]
        means = self.part(name, lambda run: mean_of(sites[run]["fn"]))
        if means is None:
            means = self.part(name, lambda run: sites[run]["value"])
        assert means is not None
        return means if means.dtype.is_floating_point else means.to(torch.get_default_dtype())

    def unit_kl(self, name: str) -> Tensor | None:
        """Return log q - log p of each unit, or its average over this site in closed form."""
        if any(name not in model.nodes for model in self.models):
            return None  # an auxiliary site of the guide has no prior
        sites = [
            (g.nodes[name], m.nodes[name]) for g, m in zip(self.guides, self.models, strict=True)
        ]
        return self.part(name, lambda run: _unit_kl(*sites[run], closed=self.alone))


def _run(
    program: Program,
    layout: Layout,
    args: tuple[Tensor, ...],
    num_samples: int,
    *,
    with_model: bool = True,
) -> _Runs:
    # Inside further plates a dimension of samples would not say whose it is.
    stacked = num_samples > 1 and layout.vectorizes and layout.max_plate_nesting == 1
    particles = num_samples if stacked else None

    def run() -> tuple[Any, Any]:
        if with_model:
            return program.traces(*args, num_particles=particles)
        with pyro.plate("particles", particles, dim=-2) if particles else nullcontext():
            return None, poutine.trace(program.guide).get_trace(*args)

    models, guides = zip(*(run() for _ in range(1 if stacked else num_samples)), strict=True)
    return _Runs(list(models), list(guides), stacked, len(layout.latents) == 1)


def _unit_kl(site: Any, prior_site: Any, *, closed: bool) -> Tensor | None:
    q, p = independent_units(site["fn"]), independent_units(prior_site["fn"])
    if q is None or p is None or site["mask"] is not None or prior_site["mask"] is not None:
        return None
    # In a hierarchy p may depend on a layer that was drawn given this one: KL(q | p) at those
    # samples would average over this site twice.
    kl = _closed_kl(q, p) if closed else None
    return q.log_prob(site["value"]) - p.log_prob(site["value"]) if kl is None else kl


def _closed_kl(q: Any, p: Any) -> Tensor | None:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _is_exact(program: Program, layout: Layout, args: tuple[Tensor, ...]) -> bool:
    """Say whether one run gives the posterior's exact means and, where there are any, KLs."""
    if len(layout.latents) > 1:
        return False
    (name,) = layout.latents
    model, guide = program.traces(*(arg[:2] for arg in args))
    q, p = (independent_units(trace.nodes[name]["fn"]) for trace in (guide, model))
    if mean_of(guide.nodes[name]["fn"]) is None:
        return False
    return q is None or p is None or _closed_kl(q, p) is not None


@dataclass(frozen=True, eq=False)
class _UnitSums:
    """Of a batch: posterior means, their variance by chance, and KLs, ``[B, num_units]``."""

    means: Tensor
    chance: Tensor
    kl: Tensor | None


def _unit_sums(runs: _Runs, name: str) -> _UnitSums:
    means = _flat_units(runs.means(name))
    num_samples = len(means)
    chance = means.var(0) / num_samples if num_samples > 1 else torch.zeros_like(means[0])
    kl = runs.unit_kl(name)
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
