"""The pictures of a run: what each shows, and which a kind of data has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli import molecular
from pyro_vae.cli.attempts import Failure, attempted, optional
from pyro_vae.cli.class_pictures import analogies_of, confusion_of, samples_of
from pyro_vae.cli.runs import Run
from pyro_vae.cli.topics import drawn_map
from pyro_vae.datasets import Data
from pyro_vae.evaluation import UnitActivity
from pyro_vae.evaluation.code_usage import quantized_sites
from pyro_vae.evaluation.samples import NoPlaneError
from pyro_vae.files import own_folder
from pyro_vae.fitting import Fit
from pyro_vae.inference import Probe
from pyro_vae.report import codes, plots
from pyro_vae.report.curves import curves

__all__ = ["draw", "ending"]

_DRAWN_ROWS = 2_000
_COMPARED_ROWS = 10
_NUM_SAMPLES = 64
_NUM_UNITS = 8
_SPAN = 3.0
_NUM_STEPS = 10
_TEMPERATURES = (0.25, 0.5, 0.75, 1.0)


class _Picture(NamedTuple):
    """A picture that may be drawn.

    Attributes:
        name: Of its file, without suffix.
        caption: What it shows.
        draw: Returns the figure; None where the program has no such picture.
    """

    name: str
    caption: str
    draw: Callable[[], Any]


def draw(run: Run, done: Fit, folder: Path) -> list[tuple[str, Path | str]]:
    """Draw the run's pictures into a folder; return captions and paths.

    In the place of the path of a picture that cannot be drawn stands a sentence that says why.
    """
    drawn = molecular.draw(run, folder)
    for picture in _pictures(run, done):
        figure = attempted(f"the picture {picture.name!r}", picture.draw)
        if isinstance(figure, Failure):
            drawn.append((picture.caption, f"This picture could not be drawn: {figure}"))
        elif figure is not None:
            drawn.append((picture.caption, _saved(figure, folder / f"{picture.name}.png")))
    return drawn


def _saved(figure: Any, path: Path) -> Path:
    own_folder(path.parent)
    plots.save(figure, path)
    return path


def _pictures(run: Run, done: Fit) -> Iterator[_Picture]:
    program = _Program(run)
    if done.history:
        yield _Picture("curves", "Bounds by epoch", lambda: curves(done.history))
    sites = optional("what each site observes", lambda: program.sites)
    activity = optional("the activity of units", lambda: program.activity) or {}
    if sites is not None:
        images = [name for name, site in sites.items() if site.is_image]
        for name in images:
            yield from _of_images(program, name, ending(name), activity)
        if len(images) < len(sites):
            numbers = [name for name in sites if name not in images and not sites[name].is_text]
            if numbers:
                yield from _of_numbers(program, numbers, ending("other" if images else ""))
        yield from _of_classes(run, program, {name: sites[name] for name in images})
    yield from _units(activity)
    yield from _codes(program)
    caption = "Topics by their numbers, near each other where their words agree"
    yield _Picture("topics", caption, lambda: drawn_map(run))
    yield _Picture("latents", "Posterior means of test data", lambda: _scatter(run, program.test))


def ending(site: str) -> str:
    """Return what names of a site's files end with; nothing of the one site of a program."""
    return f"_{re.sub(r'[^0-9A-Za-z]+', '_', site)}" if site else ""


class _Site(NamedTuple):
    """What one observed site has of the test data.

    Attributes:
        values: As they are drawn, ``[N, *shape]``.
        is_image: Whether that is the shape of an image.
        limits: The ends of the scale of colours: the smallest and the largest value.
        is_text: Whether they are the numbers of a text's symbols, which tell nothing as colours.
    """

    values: Tensor
    is_image: bool
    limits: tuple[float, float]
    is_text: bool = False

    def shaped(self, values: Tensor, lead: int) -> Tensor:
        """Return values of the site in the shape that is drawn, behind ``lead`` dimensions."""
        return values.reshape(*values.shape[:lead], *self.values.shape[1:])


class _Program:
    """A run's program and what it makes of the test data; each is made once, when it is drawn."""

    def __init__(self, run: Run) -> None:
        self.model, self.guide = run.program.model, run.program.guide
        self.test = run.test_rows()
        self.probe = Probe(run.bound, *run.arguments(self.test[:3]))
        self.quantized = quantized_sites(self.probe)
        self.of_texts = run.data.vocabulary is not None

    def few(self, count: int) -> Data:
        """Return the first test data."""
        return self.test[:count]

    @cached_property
    def sites(self) -> dict[str, _Site]:
        """What each site observes; x in its own shape where a site observes all of it."""
        rows = self.few(_DRAWN_ROWS)
        found, x = {}, rows.x
        for name, values in _by_site(evaluation.observed(self.model, self.guide, rows)).items():
            whole = values.numel() == x.numel()
            same = whole and torch.equal(values.reshape(x.shape).nan_to_num(), x.cpu().nan_to_num())
            values = values.reshape(x.shape) if same else values
            values = values.unsqueeze(1) if values.dim() == 3 else values  # of one channel
            seen = values[values.isfinite()]
            is_image = values.dim() == 4 and values.shape[1] in (1, 3, 4)
            is_text = same and self.of_texts
            found[name] = _Site(values, is_image, _limits(seen), is_text)
        return found

    @cached_property
    def activity(self) -> dict[str, UnitActivity]:
        """How much each unit is used."""
        return evaluation.unit_activity(self.model, self.guide, self.test)

    @cached_property
    def reconstructions(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means and samples."""
        rows = self.few(_COMPARED_ROWS)
        mean = evaluation.reconstruct(self.model, self.guide, rows)
        sample = evaluation.reconstruct(self.model, self.guide, rows, stochastic=True)
        return _by_site(mean), _by_site(sample)

    @cached_property
    def samples(self) -> dict[str, Tensor]:
        """Means of x for z drawn from the prior, ``[64, ...]``."""
        rows = self.few(_NUM_SAMPLES)
        return _by_site(evaluation.prior_samples(self.model, rows, _NUM_SAMPLES))

    @cached_property
    def moved(self) -> tuple[str, list[int], dict[str, Tensor]]:
        """The latent site whose units are moved, which units, and ``[units, steps, ...]``."""
        site, first = next(iter(self.activity.items()))
        units = first.activity.argsort(descending=True)[:_NUM_UNITS].tolist()
        found = evaluation.traverse(
            self.model, self.guide, self.few(1), units=units, site=site, span=_SPAN,
            num_steps=_NUM_STEPS,
        )  # fmt: skip
        return site, units, _by_site(found)

    @cached_property
    def between(self) -> dict[str, Tensor]:
        """The way from the first test data to the last, ``[pairs, steps, ...]``."""
        start, end = self.few(4), self.test[-4:]
        found = evaluation.interpolate(self.model, self.guide, start, end, num_steps=_NUM_STEPS)
        return _by_site(found)

    @cached_property
    def cooled(self) -> dict[str, Tensor] | None:
        """Samples at several temperatures, ``[temperatures, steps, ...]``; None without a mean."""
        rows = self.few(_NUM_STEPS)
        try:
            found = [
                _by_site(evaluation.prior_samples(self.model, rows, _NUM_STEPS, temperature=t))
                for t in _TEMPERATURES
            ]
        except ValueError:
            return None
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}

    @cached_property
    def below(self) -> dict[str, Tensor]:
        """Samples redrawn below each layer, ``[layers, steps, ...]``."""
        return _by_site(evaluation.resample_below(self.model, self.few(1), num_samples=_NUM_STEPS))

    @cached_property
    def from_top(self) -> dict[str, Tensor]:
        """Test data as the uppermost layers see them, ``[layers, steps, ...]``."""
        rows = self.few(_NUM_STEPS)
        return _by_site(evaluation.reconstruct_from_top(self.model, self.guide, rows))

    @cached_property
    def plane(self) -> dict[str, Tensor] | None:
        """Means of x over two latents, ``[steps, steps, ...]``; None where there is no plane."""
        try:
            return _by_site(evaluation.manifold(self.model, self.few(1)))
        except NoPlaneError:
            return None


def _limits(seen: Tensor) -> tuple[float, float]:
    """Return the ends of the scale of colours: of what all is the same, with 0 and 1 on it."""
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    return (low, high) if low < high else (min(low, 0.0), max(high, 1.0))


def _by_site(found: Any) -> dict[str, Tensor]:
    """Return data by observed site; where a program has one, its name is left out."""
    return dict(found) if isinstance(found, Mapping) else {"": found}


def _of_numbers(program: _Program, names: list[str], end: str) -> Iterator[_Picture]:
    """Draw sites that are no images as rows of numbers, side by side."""
    beside = ", ".join(f"{name} ({_width(program, name)})" for name in names if name)
    sites = f"; sites and their numbers of features: {beside}" if beside else ""

    def rows(values: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([values[name].reshape(len(values[name]), -1).float() for name in names], 1)

    def data() -> Tensor:
        return rows({name: program.sites[name].values[:_COMPARED_ROWS] for name in names})

    def reconstructions() -> Any:
        mean, sample = program.reconstructions
        others = {"mean": rows(mean), "sample": rows(sample)}
        return plots.rows(data(), others, title="Reconstructions")

    def samples() -> Any:
        others = {"prior": rows(program.samples)[:_COMPARED_ROWS]}
        return plots.rows(data(), others, title="Data, and samples from the prior")

    caption = f"Test data, and their reconstructions: mean and sample{sites}"
    yield _Picture(f"reconstructions{end}", caption, reconstructions)
    caption = f"Test data, and means of x for z drawn from the prior{sites}"
    yield _Picture(f"samples{end}", caption, samples)


def _width(program: _Program, name: str) -> int:
    return program.sites[name].values[0].numel()


def _of_images(
    program: _Program, name: str, end: str, activity: dict[str, UnitActivity]
) -> Iterator[_Picture]:
    site = program.sites[name]
    limits, of = site.limits, f" of {name}" if end else ""

    def reconstructions() -> Any:
        mean, sample = (site.shaped(part[name], 1) for part in program.reconstructions)
        return plots.reconstructions(site.values[:_COMPARED_ROWS], mean, sample)

    def samples() -> Any:
        images = site.shaped(program.samples[name], 1)
        return plots.image_grid(images, title="From the prior", columns=16, limits=limits)

    def between() -> Any:
        return plots.interpolation(site.shaped(program.between[name], 2), limits=limits)

    def moved() -> Any:
        _, units, images = program.moved
        labels, places = [f"unit {u}" for u in units], torch.linspace(-_SPAN, _SPAN, _NUM_STEPS)
        return plots.traversal(
            site.shaped(images[name], 2), labels, values=places.tolist(), limits=limits
        )

    caption = f"Test data, and their reconstructions{of}: mean and sample"
    yield _Picture(f"reconstructions{end}", caption, reconstructions)
    yield _Picture(f"samples{end}", f"Means of x for z drawn from the prior{of}", samples)
    caption = f"Between the posterior means of two test data{of}"
    yield _Picture(f"interpolations{end}", caption, between)
    latent = next(iter(activity), "z")
    caption = f"One unit of {latent} at a time, in standard deviations of its prior{of}"
    if not program.quantized:  # there is nothing between one code and the next
        yield _Picture(f"traversals{end}", caption, moved)
    yield from _of_prior(program, name, end, activity)


def _of_prior(
    program: _Program, name: str, end: str, activity: dict[str, UnitActivity]
) -> Iterator[_Picture]:
    """Draw what only some priors and latents have: temperatures, layers, a plane."""
    site, labels = program.sites[name], [f"{value:g}" for value in _TEMPERATURES]
    yield _grid(
        site, lambda: program.cooled and program.cooled[name], f"temperatures{end}",
        "From the prior, by temperature", labels,
        "Means of x for latents drawn nearer to the prior's mean, by a factor",
    )  # fmt: skip
    if len(activity) > 1:
        yield from _of_layers(program, name, end, len(activity))

    def plane() -> Any:
        plane = program.plane
        return plane and plots.manifold(site.shaped(plane[name], 2), limits=site.limits)

    if len(activity) == 1 and next(iter(activity.values())).activity.numel() == 2:
        yield _Picture(f"manifold{end}", "Means of x over the quantiles of both latents", plane)


def _of_layers(program: _Program, name: str, end: str, num_layers: int) -> Iterator[_Picture]:
    """Draw what the upper layers of a hierarchy decide, and what the lower ones leave open."""
    site = program.sites[name]
    labels = [f"top {number}" for number in range(1, num_layers + 1)]
    yield _grid(
        site, lambda: program.below[name], f"layers_samples{end}",
        "Upper layers fixed, the others redrawn", labels,
        "Samples with the uppermost layers fixed, and the others redrawn",
    )  # fmt: skip

    def seen() -> Tensor:
        images = site.shaped(program.from_top[name], 2)
        return torch.cat([site.values[None, : images.shape[1]], images])

    yield _grid(
        site, seen, f"layers_reconstructions{end}",
        "Upper layers from the data, the others from the model", ["data", *labels],
        "Test data, and what the uppermost layers alone know of them",
    )  # fmt: skip


def _grid(
    site: _Site,
    images: Callable[[], Any],
    name: str,
    title: str,
    labels: list[str],
    caption: str,
) -> _Picture:
    """Draw ``[rows, columns, ...]`` of a site with a label for each row."""

    def figure() -> Any:
        found = images()
        if found is None:
            return None
        shaped = site.shaped(found, 2)
        return plots.image_grid(shaped, title=title, row_labels=labels, limits=site.limits)

    return _Picture(name, caption, figure)


def _of_classes(run: Run, program: _Program, images: Mapping[str, _Site]) -> Iterator[_Picture]:
    """Draw what a latent that is a class decides, and how it agrees with labels."""
    caption = "How the likeliest class or cluster of test data agrees with their labels"
    yield _Picture("confusion", caption, lambda: confusion_of(run, program.test))
    if set(images) != {""}:
        return
    site = images[""]

    def shaped(values: Tensor) -> Tensor:
        return site.shaped(values, 2)

    few = program.few(_COMPARED_ROWS)
    yield _Picture(
        "classes", "Means of x for draws from the prior of each class or cluster",
        lambda: samples_of(run, few, shaped, site.limits),
    )  # fmt: skip
    yield _Picture(
        "analogies", "Test data, and their style as every class",
        lambda: analogies_of(run, few, shaped, site.limits),
    )  # fmt: skip


def _units(activity: dict[str, UnitActivity]) -> Iterator[_Picture]:
    """Draw the KL of the units of all layers that have one."""
    known = {name: site for name, site in activity.items() if site.kl_nats is not None}
    if not known:
        return
    bars = {name: (site.kl_nats, site.activity) for name, site in known.items() if
            site.kl_nats is not None}  # fmt: skip
    counts = ", ".join(f"{site.num_active} of {name}" for name, site in known.items())
    yield _Picture("units", f"KL of each unit; active: {counts}", lambda: plots.layer_bars(bars))


def _codes(program: _Program) -> Iterator[_Picture]:
    """Draw the codes of quantised latents, where there are any."""
    probe = program.probe
    for name, fn in program.quantized.items():
        end, rows = ending("" if len(probe.layout.latents) == 1 else name), program.few(10)

        def usage(name: str = name) -> Any:
            return codes.code_usage(evaluation.code_usage(probe, program.test)[name].counts)

        def maps(name: str = name, num: int = fn.codes.num_codes, rows: Data = rows) -> Any:
            found = evaluation.code_indices(probe, rows)[name].cpu()
            return codes.code_maps(found, num) if found.dim() in (2, 3) else None

        yield _Picture(f"code_usage{end}", "How often each code occurs in the test data", usage)
        yield _Picture(f"code_maps{end}", "The codes of test data in their places", maps)


def _scatter(run: Run, test: Data) -> Any:
    rows = test[:_DRAWN_ROWS]
    means = evaluation.posterior_means(run.program.model, run.program.guide, rows)
    flat = torch.cat([mean.flatten(1) for mean in means.values()], 1).cpu()
    plane = flat.shape[1] == 2
    return plots.latent_scatter(
        evaluation.embed(flat),
        None if run.data.test.labels is None else run.data.test.labels[: len(rows)],
        title="Posterior means" if plane else "Posterior means (t-SNE)",
        axis_labels=("unit 0", "unit 1") if plane else ("", ""),
        classes=run.data.classes,
    )
