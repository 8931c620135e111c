"""The continuous latents of any program as one real vector for each row of a batch.

Markov chains, and all else that moves latents about, need positions without bounds. All sites of a
program together make one vector: ``biject_to`` of each site's support leads from real numbers to
its values, and the Jacobian of the way belongs to the density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.evaluation.hmc import Density, Point
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout, is_invertible
from pyro_vae.inference.terms import log_densities
from pyro_vae.recording.replaying import Replayed

__all__ = ["LatentSpace", "Path"]


class LatentSpace:
    r"""The latents :math:`z` of a program as :math:`u \in R^D`, and its densities there.

    Args:
        program: The model and the guide.
        layout: Of the program.
        few: A few data (and what else the program takes).

    Raises:
        ValueError: If a latent is discrete, or its distribution does not say where its values lie.
    """

    def __init__(self, program: Program, layout: Layout, *few: Tensor) -> None:
        self.program, self.layout = program, layout
        with program.evaluating(seed=0):
            model_trace, _ = program.traces(*few)
        for name in layout.latents:
            if name not in model_trace.nodes:
                raise ValueError(
                    f"the guide's site {name!r} has no density "
                    "in the model, which annealing and HMC move along: start at the prior, or "
                    "leave the site out"
                )
        self._shapes = {
            name: _shape(name, site)
            for name, site in model_trace.nodes.items()
            if name in layout.latents
        }
        self.num_dims = sum(math.prod(shape) for shape in self._shapes.values())

    def check_guide(self, *few: Tensor) -> None:
        """Check that the guide has a density at values other than its own draws.

        Raises:
            ValueError: If a site has not, or only by inverting an autoregressive flow.
        """
        with self.program.evaluating(seed=0):
            _, trace = self.program.traces(*few)
            for name in self._shapes:
                if not is_invertible(trace.nodes[name]["fn"]):
                    raise ValueError(
                        f"the guide's site {name!r} has a flow that "
                        "scores its own draws alone: start at the prior (guide=None)"
                    )

    def draw(self, *rows: Tensor) -> Tensor:
        """Draw every row's latents from the guide; return them as ``[R, D]``."""
        _, guide_trace = self.program.traces(*rows)
        return self.positions(
            {name: guide_trace.nodes[name]["value"] for name in self._shapes}, *rows
        )

    def positions(self, values: Mapping[str, Tensor], *rows: Tensor) -> Tensor:
        """Return latents as ``[R, D]``; ``values`` are shaped as the program draws them."""
        place = _Place(values=values)
        with place:
            self.program.model(*rows)
        parts = [
            place.positions[name].movedim(len(shape) - place.event_dims[name], 0)
            for name, shape in self._shapes.items()
        ]
        return torch.cat([part.reshape(len(rows[0]), -1) for part in parts], dim=1)

    def values(self, position: Tensor, *rows: Tensor) -> dict[str, Tensor]:
        """Return every site's values at positions ``[R, D]``: ``[R, ..., *event_shape]`` each."""
        trace, _ = self._model(position, *rows)
        found = {}
        for name in self._shapes:
            site = trace.nodes[name]
            found[name] = site["value"].movedim(len(site["fn"].batch_shape) - 1, 0)
        return found

    def log_densities(
        self, position: Tensor, *rows: Tensor, with_guide: bool
    ) -> tuple[Tensor, Tensor]:
        r"""Return the logarithms of where a path starts, and of its end over that, ``[R]`` each.

        .. math:: \log f_0(u) = \log q(z \mid x) + \log |J|, \qquad
            \log \frac{f_1(u)}{f_0(u)} = \log p(x, z) - \log q(z \mid x)

        Args:
            position: u, ``[R, D]``.
            rows: As many data (and what else the program takes).
            with_guide: Otherwise the path starts at the prior, :math:`p(z)` for :math:`q`.
        """
        trace, log_jacobian = self._model(position, *rows)
        shape, nesting = (1, len(rows[0])), self.layout.max_plate_nesting
        log_p = log_densities(trace, shape, nesting)
        if with_guide:
            replayed = poutine.replay(self.program.guide, trace=trace)
            log_q = log_densities(poutine.trace(replayed).get_trace(*rows), shape, nesting)
            log_start, log_ratio = _sum(log_q), _sum(log_p) - _sum(log_q)
        else:
            log_start = _sum({name: log_p.pop(name) for name in self._shapes})
            log_ratio = _sum(log_p)
        return log_start + log_jacobian, log_ratio

    def _model(self, position: Tensor, *rows: Tensor) -> tuple[Any, Tensor]:
        """Run the model at positions; return its trace and the Jacobians' logarithm, ``[R]``."""
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = position.split(sizes, dim=1)
        place = _Place(
            positions={
                name: part.unflatten(1, shape) if shape else part.squeeze(1)
                for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
            }
        )
        with place:
            trace = poutine.trace(self.program.model).get_trace(*rows)
        return trace, place.log_jacobian


class Path:
    r"""Densities from a start to p(x, z), and their gradients, for all chains of a batch at once.

    .. math:: \log f_\beta(u) = (1 - \beta) \log f_0(u) + \beta \log f_1(u)

    One program of tensors, which is recorded or compiled where that pays.

    Args:
        space: Of the latents.
        with_guide: Whether the path starts at the guide, otherwise at the prior.
        engine: How densities are computed, see ``Replayed``.
        num_calls: How many evaluations are to be expected.
        num_rows: How many chains a full batch has.
    """

    def __init__(
        self, space: LatentSpace, *, with_guide: bool, engine: str, num_calls: int, num_rows: int
    ) -> None:
        self._space, self._with_guide = space, with_guide
        self._num_done = 0
        self._replayed = Replayed(
            space.program, self._evaluate, engine=engine, num_calls=num_calls,
            rare=lambda position, *rows: len(position) < num_rows,
        )  # fmt: skip

    def density(self, beta: Tensor, rows: tuple[Tensor, ...]) -> Density:
        r"""Return :math:`f_\beta`, for one datum in each row.

        Args:
            beta: Of each row, ``[R]``.
            rows: As many data (and what else the program takes).
        """
        return partial(self._point, beta, rows)

    def _point(self, beta: Tensor, rows: tuple[Tensor, ...], position: Tensor) -> Point:
        args = (position, *rows)
        found: Any = self._replayed(self._num_done, None, *args) or self._evaluate(*args)
        self._num_done += 1
        log_start, gradient, *of_ratio = found
        return Point(position, log_start, gradient, *of_ratio).further(beta.to(log_start))

    def _evaluate(self, position: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return both logarithms, each followed by its gradient."""
        with torch.enable_grad():
            moved = position.detach().requires_grad_()
            found = self._space.log_densities(moved, *rows, with_guide=self._with_guide)
            gradients = [
                torch.autograd.grad(log.sum(), moved, retain_graph=True, materialize_grads=True)[0]
                for log in found
            ]
        log_start, log_ratio = (log.detach() for log in found)
        return log_start, gradients[0], log_ratio, gradients[1]


class _Place(Messenger):
    """Set latents to values, or to where positions lead; note the positions and the Jacobians.

    Args:
        values: Of latent sites, as the program draws them.
        positions: Of latent sites, ``[R, *plates, *shape]``, in place of values.
    """

    def __init__(
        self,
        *,
        values: Mapping[str, Tensor] | None = None,
        positions: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.values = values or {}
        self.positions = dict(positions or {})
        self.event_dims: dict[str, int] = {}
        self.log_jacobian: Any = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.values and name not in self.positions:
            return
        # Only here is the support known: it may depend on other latents.
        transform = biject_to(fn.support)
        num_plates = len(fn.batch_shape) - 1
        if name in self.values:
            msg["value"] = self.values[name]
            self.positions[name] = position = transform.inv(msg["value"])
        else:
            position = self.positions[name].movedim(0, num_plates)
            msg["value"] = transform(position)
        self.event_dims[name] = position.dim() - 1 - num_plates
        log_jacobian = transform.log_abs_det_jacobian(position, msg["value"])
        while log_jacobian.dim() > len(fn.batch_shape):
            log_jacobian = log_jacobian.sum(-1)
        while log_jacobian.dim() > 1:
            log_jacobian = log_jacobian.sum(0)
        self.log_jacobian = self.log_jacobian + log_jacobian


def _sum(log_densities: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*log_densities.values()]).sum((0, 1))


def _shape(name: str, site: Any) -> tuple[int, ...]:
    """Return the shape of one row's position at a site: plates inside the datum come first."""
    fn = site["fn"]
    try:
        if fn.support.is_discrete:
            raise ValueError(
                f"site {name!r} is discrete ({type(fn).__name__}): annealing and "
                "HMC move along gradients in the latents; use importance sampling for this program"
            )
        transform = biject_to(fn.support)
    except (AttributeError, NotImplementedError):
        raise ValueError(
            f"site {name!r} has a {type(fn).__name__}, whose support is not known: "
            "annealing and HMC need one that biject_to leads to"
        ) from None
    return (*fn.batch_shape[:-1], *transform.inverse_shape(fn.event_shape))
