"""Find which parts combine: run ``fit``'s own checks on every combination, at tiny sizes.

Nothing here declares what fits what. A part says what it is by the distribution that it returns
(its support, its event shape, whether it is reparameterised, whether its KL has a closed form), and
the checks that precede every run read it there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

from pyro_vae.cli.names import offered, stated
from pyro_vae.components import MLP, Conditional
from pyro_vae.components.points import PointFamily
from pyro_vae.inference import refusals
from pyro_vae.models import VAE

__all__ = [
    "Combination",
    "Parts",
    "kind_of",
    "matching_posterior",
    "matching_prior",
    "objective_of",
    "small_parts",
    "tables",
]

_LATENT_SHAPE = (4,)
_EVENT_SHAPES = ((1, 2, 2), (3, 2, 2), (4,))  # the first of them that a likelihood takes
_NUM_ROWS = 6
_PARTS_OF_A_REASON = re.compile(r"\ba [A-Z]\w+|'\w+'|^[A-Z]\w+")


@dataclass(frozen=True)
class Parts:
    """The parts to combine, by name: builders of families, and of objectives.

    Attributes:
        priors: From a latent's shape.
        likelihoods: From a datum's shape.
        posteriors: From a latent's shape.
        objectives: From nothing.
    """

    priors: Mapping[str, Callable[..., Any]]
    likelihoods: Mapping[str, Callable[..., Any]]
    posteriors: Mapping[str, Callable[..., Any]]
    objectives: Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Combination:
    """One prior, likelihood, posterior and objective, each as its name and its builder."""

    prior: tuple[str, Callable[..., Any]]
    likelihood: tuple[str, Callable[..., Any]]
    posterior: tuple[str, Callable[..., Any]]
    objective: tuple[str, Callable[[], Any]]

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Return the names of the four parts."""
        return self.prior[0], self.likelihood[0], self.posterior[0], self.objective[0]

    def program(self, *, seed: int = 0) -> tuple[VAE, Tensor]:
        """Build the program and data of its own kind, ``[6, *event_shape]``.

        Raises:
            ValueError: If a part refuses the others, or its own shape.
        """
        torch.manual_seed(seed)
        event_shape, x = _data(self.likelihood[1])
        vae = VAE.assemble(
            event_shape, _LATENT_SHAPE, prior=self.prior[1], likelihood=self.likelihood[1],
            posterior=self.posterior[1], network=partial(MLP, hidden=(5,)), data=x,
        )  # fmt: skip
        return vae, x

    def refusal(self) -> str | None:
        """Say why ``fit`` refuses the combination; None if it does not."""
        name, objective = self.objective
        return self.refusals({name: objective})[name]

    def refusals(self, objectives: Mapping[str, Callable[[], Any]]) -> dict[str, str | None]:
        """Say the same of each objective, in place of its own."""
        with torch.random.fork_rng(devices=[]):
            try:
                vae, x = self.program()
            except ValueError as reason:
                return dict.fromkeys(objectives, str(reason))
            built = {name: objective() for name, objective in objectives.items()}
            return refusals(vae.model, vae.guide, x, objectives=built)


def small_parts() -> Parts:
    """Return all parts that the command line offers by name, with their default arguments."""
    families = {
        role: {
            name: partial(part, **stated(part, "example", {}))
            for name, part in offered(role).items()
        }
        for role in ("prior", "likelihood", "posterior", "objective")
    }
    return Parts(*families.values())


def matching_prior(parts: Parts, posterior: str) -> str:
    """Return the first prior that has the values of a posterior; the standard normal if it does.

    Raises:
        ValueError: If none has.
    """
    pairs = {name: _plain(parts, name, posterior) for name in parts.priors}
    return _first_that_fits(pairs, ("StandardNormal", posterior), f"prior for {posterior}")


def matching_posterior(parts: Parts, prior: str) -> str:
    """Return the first posterior that has the values of a prior; a normal or its own if they do.

    Raises:
        ValueError: If none has.
    """
    pairs = {name: _plain(parts, prior, name) for name in parts.posteriors}
    return _first_that_fits(pairs, ("DiagonalNormal", prior), f"posterior for {prior}")


def _first_that_fits(pairs: dict[str, Combination], first: tuple[str, str], sought: str) -> str:
    for name in sorted(pairs, key=lambda name: (name != first[0], name != first[1])):
        if pairs[name].refusal() is None:
            return name
    raise ValueError(f"no {sought} has the same values")


def tables(parts: Parts) -> Iterator[str]:
    """Return the lines of two tables, which ask every pair: it takes a minute.

    Posteriors against priors; and objectives against posteriors, each with the first prior that it
    goes with. Likelihoods are in neither, since none refuses another part: it is the data that
    they take or refuse.
    """

    def latents(posterior: Any, prior: Any) -> str | None:
        return _plain(parts, prior[0], posterior[0]).refusal()

    @cache
    def of_objectives(posterior: str) -> dict[str, str | None]:
        prior = matching_prior(parts, posterior)
        return _plain(parts, prior, posterior).refusals(parts.objectives)

    def objective(chosen: Any, posterior: Any) -> str | None:
        return of_objectives(posterior[0])[chosen[0]]

    yield "posteriors (rows) with priors (columns); a dot: they go together"
    yield from _matrix(parts.posteriors, parts.priors, latents)
    yield "\nobjectives (rows) with posteriors (columns)"
    yield from _matrix(parts.objectives, parts.posteriors, objective)


def _plain(parts: Parts, prior: str, posterior: str) -> Combination:
    """Return a combination with the first likelihood, and the objective of its kind of latents."""
    objective = objective_of(parts, posterior)
    return Combination(
        (prior, parts.priors[prior]),
        next(iter(parts.likelihoods.items())),
        (posterior, parts.posteriors[posterior]),
        (objective, parts.objectives[objective]),
    )


def objective_of(parts: Parts, posterior: str) -> str:
    """Return the plain objective of a posterior: there is no bound of points."""
    family = getattr(parts.posteriors[posterior], "func", object)
    return "Reconstruction" if issubclass(family, PointFamily) else "ELBO"


def _matrix(
    rows: Mapping[str, Any], columns: Mapping[str, Any], ask: Callable[[Any, Any], str | None]
) -> Iterator[str]:
    """Return the lines of a table: a dot where two parts go together, else the reason's letter.

    Args:
        rows: Parts by name.
        columns: Parts by name.
        ask: Says why an item of each does not go with the other; None if it does.
    """
    reasons: dict[str, str] = {}
    width = max(map(len, rows))
    for place, name in enumerate(columns):
        yield f"{' ' * width} {' |' * place} {name}"
    for row, part in rows.items():
        cells = [_letter(ask((row, part), column), reasons) for column in columns.items()]
        yield f"{row:<{width}} {''.join(f' {cell}' for cell in cells)}"
    for reason, letter in reasons.items():
        yield f"{letter}: {reason}"


def kind_of(reason: str) -> str:
    """Return a reason without the names of the parts that it is about."""
    return _PARTS_OF_A_REASON.sub("...", reason)


def _letter(reason: str | None, reasons: dict[str, str]) -> str:
    if reason is None:
        return "."
    return reasons.setdefault(kind_of(reason), ascii_letters[len(reasons)])


@cache
def _data(likelihood: Callable[..., Any]) -> tuple[tuple[int, ...], Tensor]:
    """Draw a few data from a likelihood, of a shape that it takes."""
    reasons: list[str] = []
    for shape in _EVENT_SHAPES:
        try:
            family = likelihood(shape)
        except ValueError as reason:
            reasons.append(str(reason))
            continue
        drawn = Conditional(family)().expand((_NUM_ROWS,)).sample()
        return shape, drawn.float()
    raise ValueError(reasons[0])
