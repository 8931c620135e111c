"""The continuous latents of any program as one real vector for each row of a batch.

Markov chains, and all else that moves latents about, need positions without bounds. All sites of a
program together make one vector: ``biject_to`` of each site's support leads from real numbers to
its values, and the Jacobian of the way belongs to the density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout, is_invertible
from pyro_vae.inference.terms import log_densities

__all__ = ["LatentSpace", "shape_of"]


class LatentSpace:
    r"""The latents :math:`z` of a program as :math:`u \in R^D`, and its densities there.

    Args:
        program: The model and the guide.
        layout: Of the program.
        shapes: Of one row's position at each latent site, in the order of the model: plates inside
            the datum come first.
    """

    def __init__(
        self, program: Program, layout: Layout, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.program, self.layout, self.shapes = program, layout, dict(shapes)
        self.num_dims = sum(math.prod(shape) for shape in self.shapes.values())

    @classmethod
    def of(cls, program: Program, layout: Layout, *few: Tensor) -> LatentSpace:
        """Return the latent space of a program, which is run once to find it.

        Args:
            program: The model and the guide.
            layout: Of the program.
            few: A few data (and what else the program takes).

        Raises:
            ValueError: If a latent is discrete, or its distribution does not say where its values
                lie.
        """
        with program.evaluating(seed=0):
            model_trace, _ = program.traces(*few)
        for name in layout.latents:
            if name not in model_trace.nodes:
                raise ValueError(
                    f"the guide's site {name!r} has no density "
                    "in the model, which annealing and HMC move along: start at the prior, or "
                    "leave the site out"
                )
        shapes = {
            name: shape_of(name, site["fn"], site["fn"].batch_shape[:-1])
            for name, site in model_trace.nodes.items()
            if name in layout.latents
        }
        return cls(program, layout, shapes)

    def check_guide(self, *few: Tensor) -> None:
        """Check that the guide has a density at values other than its own draws.

        Raises:
            ValueError: If a site has not, or only by inverting an autoregressive flow.
        """
        with self.program.evaluating(seed=0):
            _, trace = self.program.traces(*few)
            for name in self.shapes:
                if not is_invertible(trace.nodes[name]["fn"]):
                    raise ValueError(
                        f"the guide's site {name!r} has a flow that "
                        "scores its own draws alone: start at the prior (guide=None)"
                    )

    def draw(self, *rows: Tensor) -> Tensor:
        """Draw every row's latents from the guide; return them as ``[R, D]``."""
        _, guide_trace = self.program.traces(*rows)
        return self.positions(
            {name: guide_trace.nodes[name]["value"] for name in self.shapes}, *rows
        )

    def positions(self, values: Mapping[str, Tensor], *rows: Tensor) -> Tensor:
        """Return latents as ``[R, D]``; ``values`` are shaped as the program draws them."""
        place = _Place(values=values)
        with place:
            self.program.model(*rows)
        parts = [
            place.positions[name].movedim(len(shape) - place.event_dims[name], 0)
            for name, shape in self.shapes.items()
        ]
        return torch.cat([part.reshape(len(rows[0]), -1) for part in parts], dim=1)

    def values(self, position: Tensor, *rows: Tensor) -> dict[str, Tensor]:
        """Return every site's values at positions ``[R, D]``: ``[R, ..., *event_shape]`` each."""
        trace, _ = self._model(position, *rows)
        found = {}
        for name in self.shapes:
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
            log_start = _sum({name: log_p.pop(name) for name in self.shapes})
            log_ratio = _sum(log_p)
        return log_start + log_jacobian, log_ratio

    def log_p(self, position: Tensor, *rows: Tensor) -> dict[str, Tensor]:
        """Return the log-density of every site of the model at positions ``[R, D]``, ``[R]``."""
        trace, _ = self._model(position, *rows)
        found = log_densities(trace, (1, len(rows[0])), self.layout.max_plate_nesting)
        return {name: log_p.squeeze(0) for name, log_p in found.items()}

    def _model(self, position: Tensor, *rows: Tensor) -> tuple[Any, Tensor]:
        """Run the model at positions; return its trace and the Jacobians' logarithm, ``[R]``."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = position.split(sizes, dim=1)
        place = _Place(
            positions={
                name: part.unflatten(1, shape) if shape else part.squeeze(1)
                for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
            }
        )
        with place:
            trace = poutine.trace(self.program.model).get_trace(*rows)
        return trace, place.log_jacobian


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


def shape_of(name: str, fn: Any, plates: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one row's position at a site.

    Args:
        name: Of the site.
        fn: Its distribution.
        plates: The sizes of the plates inside the datum, which come first.

    Raises:
        ValueError: If its values are discrete, or their support is not known.
    """
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
    return (*plates, *transform.inverse_shape(fn.event_shape))
