"""The pictures of a run: what each shows, and which a kind of data has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli.runs import Run
from pyro_vae.engine.loop import Fit
from pyro_vae.evaluation import UnitActivity, plots

__all__ = ["draw"]

_DRAWN_ROWS = 2_000
_NUM_UNITS = 8
_SPAN = 3.0
_NUM_STEPS = 10
_TEMPERATURES = (0.25, 0.5, 0.75, 1.0)


def draw(run: Run, done: Fit, folder: Path) -> list[tuple[str, Path]]:
    """Draw the run's pictures into a folder; return captions and paths."""
    test = run.test()
    activity = evaluation.unit_activity(run.program.model, run.program.guide, *test)
    figures: dict[str, tuple[str, Any]] = {}
    if done.history:
        figures["curves"] = ("Bounds by epoch", plots.curves(done.history))
    figures |= _reconstructions(run, test)
    if _is_image(test[0]) and len(test) == 1:
        figures |= _of_images(run, test[0], activity)
    figures |= _units(activity)
    figures["latents"] = ("Posterior means of test data", _scatter(run, test))
    return [(caption, _saved(figure, folder / name)) for name, (caption, figure) in figures.items()]


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path.with_suffix(".png"))
    return path.with_suffix(".png")


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] in (1, 3, 4)


def _reconstructions(run: Run, test: tuple[Tensor, ...]) -> dict[str, tuple[str, Any]]:
    few = tuple(argument[:10] for argument in test)
    model, guide = run.program.model, run.program.guide
    mean = evaluation.reconstruct(model, guide, *few)
    sample = evaluation.reconstruct(model, guide, *few, stochastic=True)
    x = few[0].cpu()
    if _is_image(x):
        figure = plots.reconstructions(x, mean, sample)
    else:
        figure = plots.rows(x, {"mean": mean, "sample": sample}, title="Reconstructions")
    return {"reconstructions": ("Test data, and their reconstructions: mean and sample", figure)}


def _of_images(
    run: Run, x: Tensor, activity: dict[str, UnitActivity]
) -> dict[str, tuple[str, Any]]:
    model, guide = run.program.model, run.program.guide
    seen = x[~x.isnan()]
    limits = (float(seen.min()), float(seen.max()))
    name, first = next(iter(activity.items()))
    units = first.activity.argsort(descending=True)[:_NUM_UNITS].tolist()
    positions = torch.linspace(-_SPAN, _SPAN, _NUM_STEPS).tolist()
    moved = evaluation.traverse(
        model, guide, x[:1], units=units, site=name, span=_SPAN, num_steps=_NUM_STEPS
    )
    between = evaluation.interpolate(model, guide, x[:4], x[-4:], num_steps=_NUM_STEPS)
    samples = evaluation.prior_samples(model, x[:1], 64)
    figures = {
        "samples": (
            "Means of x for z drawn from the prior",
            plots.image_grid(samples, title="From the prior", columns=16, limits=limits),
        ),
        "interpolations": (
            "Between the posterior means of two test data",
            plots.interpolation(between, limits=limits),
        ),
        "traversals": (
            f"One unit of {name} at a time, in standard deviations of its prior",
            plots.traversal(
                moved, [f"unit {unit}" for unit in units], values=positions, limits=limits
            ),
        ),
    }
    figures |= _cooled(run, x, limits)
    if len(activity) > 1:
        figures |= _of_layers(run, x, limits)
    if len(activity) == 1 and first.activity.numel() == 2:
        grid = evaluation.manifold(model, x[:1])
        figures["manifold"] = (
            "Means of x over the quantiles of both latents",
            plots.manifold(grid, limits=limits),
        )
    return figures


def _of_layers(run: Run, x: Tensor, limits: tuple[float, float]) -> dict[str, tuple[str, Any]]:
    """Draw what the upper layers of a hierarchy decide, and what the lower ones leave open."""
    model, guide = run.program.model, run.program.guide
    below = evaluation.resample_below(model, x[:1], num_samples=_NUM_STEPS)
    seen = evaluation.reconstruct_from_top(model, guide, x[:_NUM_STEPS])
    labels = [f"top {number}" for number in range(1, len(below) + 1)]
    return {
        "layers_samples": (
            "Samples with the uppermost layers fixed, and the others redrawn",
            plots.image_grid(
                below, title="Upper layers fixed, the others redrawn", row_labels=labels,
                limits=limits,
            ),
        ),
        "layers_reconstructions": (
            "Test data, and what the uppermost layers alone know of them",
            plots.image_grid(
                torch.cat([x[None, :_NUM_STEPS].cpu(), seen]), limits=limits,
                title="Upper layers from the data, the others from the model",
                row_labels=["data", *labels],
            ),
        ),
    }  # fmt: skip


def _cooled(run: Run, x: Tensor, limits: tuple[float, float]) -> dict[str, tuple[str, Any]]:
    """Draw samples at several temperatures; nothing where a prior has no mean."""
    try:
        images = torch.stack(
            [
                evaluation.prior_samples(run.program.model, x[:1], _NUM_STEPS, temperature=value)
                for value in _TEMPERATURES
            ]
        )
    except ValueError:
        return {}
    labels = [f"{value:g}" for value in _TEMPERATURES]
    title = "From the prior, by temperature"
    figure = plots.image_grid(images, title=title, row_labels=labels, limits=limits)
    caption = "Means of x for latents drawn nearer to the prior's mean, by a factor"
    return {"temperatures": (caption, figure)}


def _units(activity: dict[str, UnitActivity]) -> dict[str, tuple[str, Any]]:
    """Draw the KL of the units of all layers that have one."""
    known = {name: site for name, site in activity.items() if site.kl_nats is not None}
    if not known:
        return {}
    bars = {name: (site.kl_nats, site.activity) for name, site in known.items() if
            site.kl_nats is not None}  # fmt: skip
    counts = ", ".join(f"{site.num_active} of {name}" for name, site in known.items())
    return {"units": (f"KL of each unit; active: {counts}", plots.layer_bars(bars))}


def _scatter(run: Run, test: tuple[Tensor, ...]) -> Any:
    rows = tuple(argument[:_DRAWN_ROWS] for argument in test)
    means = evaluation.posterior_means(run.program.model, run.program.guide, *rows)
    flat = torch.cat([mean.flatten(1) for mean in means.values()], 1).cpu()
    labels = run.data.test.labels
    plane = flat.shape[1] == 2
    return plots.latent_scatter(
        evaluation.embed(flat),
        None if labels is None else labels[:_DRAWN_ROWS],
        title="Posterior means" if plane else "Posterior means (t-SNE)",
        axis_labels=("unit 0", "unit 1") if plane else ("", ""),
        classes=run.data.classes,
    )
