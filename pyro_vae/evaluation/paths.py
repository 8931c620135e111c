"""Densities on the way from a start to p(x, z), for chains and for annealing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.inference.hmc import Density, Point
from pyro_vae.inference.latent_space import LatentSpace
from pyro_vae.recording.replaying import Replayed

__all__ = ["Path"]


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
