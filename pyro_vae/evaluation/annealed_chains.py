r"""Chains that move along a geometric path from a start to p(x, z), in either direction.

All chains of all data move in one batch, each with a temperature and a step size of its own. Step
sizes come from a pilot run with other chains: chains that adapt to their own past leave none of the
densities on the path invariant, and their weights would no longer have p(x) as their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import memory
from pyro_vae.arithmetic import suited_arithmetic
from pyro_vae.budget import Budget
from pyro_vae.evaluation.batching import (
    CHUNK_ELEMENTS,
    batches,
    check_counts,
    pairs_at_once,
    refuse_sampled,
)
from pyro_vae.evaluation.paths import Path
from pyro_vae.evaluation.programs import Prior
from pyro_vae.inference.hmc import Density, Point, adapted, first_step_sizes, transition
from pyro_vae.inference.latent_space import LatentSpace
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.support import check_support
from pyro_vae.wording import option

__all__ = ["Annealing", "Chains", "Run", "Settings", "temperatures"]

_STEEPNESS = 4.0
_WARM_UP = 10
# As large as the largest of a run, that a move holds at once: its gradients, and the two points.
_TENSORS = 4
_PILOT_SHARE, _FEWEST_PILOT, _PILOT_RATE, _PILOT_CHAINS = 5, 30, 0.5, 4


def temperatures(num_temperatures: int) -> Tensor:
    r"""Return :math:`0 = \beta_0 < \dots < \beta_T = 1`, ``[T + 1]``, dense at both ends.

    .. math:: \beta_t \propto \sigma(\delta (2 t / T - 1)) - \sigma(-\delta), \qquad \delta = 4
    """
    line = torch.linspace(-_STEEPNESS, _STEEPNESS, num_temperatures + 1, dtype=torch.float64)
    curve = line.sigmoid()
    return (curve - curve[0]) / (curve[-1] - curve[0])


@dataclass(frozen=True)
class Settings:
    """How long and how finely chains move; see ``annealed_importance_sampling``.

    Raises:
        ValueError: If a number is out of range.
    """

    num_temperatures: int
    num_chains: int
    num_steps: int
    target_acceptance: float
    engine: str

    def __post_init__(self) -> None:
        check_counts(num_chains=self.num_chains, num_steps=self.num_steps)
        if self.num_temperatures < 2:
            raise ValueError(
                f"num_temperatures={self.num_temperatures}: annealing needs 2 or more, some "
                "hundreds for a narrow bracket; with 1 it is importance sampling"
            )
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance={self.target_acceptance}: a probability between 0 and 1, such "
                "as 0.65"
            )


def _refuse_chains(num_chains: int, pairs: int) -> None:
    """Refuse chains of a single datum that memory cannot hold; so many pairs make a chunk."""
    needed = _TENSORS * 4 * CHUNK_ELEMENTS * num_chains // pairs
    what = f"{option('num_chains', num_chains)}: moving the chains of a single datum"
    memory.refuse_beyond(needed, what, "give fewer")


@dataclass(frozen=True)
class Chains:
    """Chains of N data and where they go.

    Attributes:
        args: The data (and what else the program takes), ``[N, ...]`` each.
        backward: Whether a datum's chains run from p(x, z) to the start, ``[N]``.
        ends: Where these begin, ``[N, D]``.
    """

    args: tuple[Tensor, ...]
    backward: Tensor
    ends: Tensor

    @classmethod
    def forward(cls, args: tuple[Tensor, ...], num_dims: int) -> Chains:
        """Let chains run from the start to p(x, z)."""
        x = args[0]
        backward = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return cls(args, backward, torch.zeros(len(x), num_dims, device=x.device))

    @classmethod
    def both_ways(cls, args: tuple[Tensor, ...], ends: Tensor) -> Chains:
        """Let chains of the same data run forward, and others from ``ends`` to the start."""
        back = cls(args, torch.ones_like(ends[:, 0], dtype=torch.bool), ends)
        return cls.forward(args, ends.shape[1]).and_(back)

    def and_(self, other: Chains) -> Chains:
        """Return these, and those of further data behind them."""
        return Chains(
            tuple(torch.cat([a, b.to(a)]) for a, b in zip(self.args, other.args, strict=True)),
            torch.cat([self.backward, other.backward]),
            torch.cat([self.ends.to(other.ends), other.ends]),
        )

    def batches(self, num_data: int) -> Iterator[Chains]:
        """Yield so many data at a time."""
        for args, (backward, ends) in zip(
            batches(self.args, num_data), batches((self.backward, self.ends), num_data), strict=True
        ):
            yield Chains(args, backward, ends)

    def repeated(self, times: int) -> Chains:
        """Give every datum several chains, one row each."""
        repeat = partial(torch.repeat_interleave, repeats=times, dim=0)
        return Chains(tuple(map(repeat, self.args)), repeat(self.backward), repeat(self.ends))


@dataclass(frozen=True)
class Run:
    """The logarithms of the chains' weights ``[K, N]``, and average acceptance ``[N]``."""

    log_w: Tensor
    acceptance: Tensor

    def __getitem__(self, data: slice) -> Run:
        """Return what concerns some of the data."""
        return Run(self.log_w[:, data], self.acceptance[data])


class Annealing:
    """Moves the chains of all data along a path, batch by batch.

    Args:
        probe: The program, see ``annealed_importance_sampling``.
        args: Data like those of the chains, and what else the program takes.
        settings: Of the chains.
        max_pairs: How many chains are in memory at once; None: found by measuring.

    Raises:
        ValueError: As ``annealed_importance_sampling``.
    """

    def __init__(
        self,
        probe: Probe,
        args: tuple[Tensor, ...],
        settings: Settings,
        max_pairs: int | None,
    ) -> None:
        check_counts(max_pairs=max_pairs)
        refuse_sampled(probe.layout, "annealing")
        check_support(probe, *args)
        program, layout = probe.program, probe.layout
        self._at_guide = not isinstance(program, Prior)
        self._settings, self._program = settings, program
        few = tuple(arg[:2] for arg in args)
        self.space = LatentSpace.of(program, layout, *few)
        if self._at_guide:
            self.space.check_guide(*few)
        pairs = max_pairs or pairs_at_once(program, layout, *args)
        _refuse_chains(settings.num_chains, pairs)
        self._most_data = max(1, pairs // settings.num_chains)
        num_pilot = max(_FEWEST_PILOT, settings.num_temperatures // _PILOT_SHARE)
        device = args[0].device
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._betas, self._pilot_betas = (
            temperatures(number).to(device=device, dtype=precise)
            for number in (settings.num_temperatures, num_pilot)
        )
        self._product = self._largest_product(few)
        self._num_moves = _WARM_UP + num_pilot + settings.num_temperatures

    def _largest_product(self, few: tuple[Tensor, ...]) -> int:
        """Return the multiplications of a density's largest product, for a single chain."""
        with self._program.evaluating(seed=0), Budget() as counted:
            position = self.space.draw(*few)
            self.space.log_densities(position, *few, with_guide=self._at_guide)
        return counted.largest_product // len(few[0])

    def ends(self, values: dict[str, Tensor], args: tuple[Tensor, ...], seed: int) -> Tensor:
        """Return where latents that were drawn with the data stand, ``[N, D]``."""
        with self._program.evaluating(seed=seed), pyro.validation_enabled(False):
            return self.space.positions(values, *args)

    def run(self, chains: Chains, seed: int, *, progress: bool) -> Run:
        """Return the weights of chains that have gone all their way."""
        num_data = len(chains.backward)
        num_batches = math.ceil(num_data / self._most_data)
        at_once, settings = math.ceil(num_data / num_batches), self._settings
        self._path = Path(
            self.space, with_guide=self._at_guide, engine=settings.engine,
            num_calls=num_batches * self._num_moves * settings.num_steps,
            num_rows=at_once * settings.num_chains,
        )  # fmt: skip
        title = (
            f"AIS: {num_data:,} data x {settings.num_chains:,} chains x "
            f"{settings.num_temperatures:,} temperatures"
        )
        total = num_data * self._num_moves
        bar = tqdm(total=total, desc=title, unit_scale=True, disable=not progress)
        # Without validation: a chain that leaves the support is rejected, not an error.
        on_cpu = chains.backward.device.type == "cpu"
        suited = suited_arithmetic(self._product * at_once * settings.num_chains, "float32")
        with (
            bar, suited if on_cpu else nullcontext(),
            self._program.evaluating(seed=seed), pyro.validation_enabled(False),
        ):  # fmt: skip
            runs = [self._annealed(batch, bar) for batch in chains.batches(at_once)]
        return Run(
            torch.cat([run.log_w for run in runs], 1), torch.cat([run.acceptance for run in runs])
        )

    def _annealed(self, data: Chains, bar: Any) -> Run:
        r"""Move the chains of some data.

        Between transitions, beta changes by :math:`\Delta`; each change adds
        :math:`\Delta (\log f_1 - \log f_0)` to the weights' logarithms. Forward, the first change
        comes before the first transition; backward, the last one comes after the last.
        """
        sizes = self._pilot(data, bar).repeat_interleave(self._settings.num_chains, 1)
        chains = data.repeated(self._settings.num_chains)
        backward, last = chains.backward, self._settings.num_temperatures
        position = self.space.draw(*chains.args)
        position = torch.where(backward.unsqueeze(-1), chains.ends.to(position), position)
        density = self._path.density(backward.to(position), chains.args)
        point = density(position)
        steps = self._betas.diff()
        log_w, total = torch.zeros_like(sizes[0], dtype=steps.dtype), torch.zeros_like(sizes[0])
        for t in range(1, last + 1):
            point, log_w = _changed(point, log_w, torch.where(backward, 0, steps[t - 1]))
            at = torch.where(backward, self._betas[last + 1 - t], self._betas[t])
            size = torch.where(backward, sizes[last + 1 - t], sizes[t])
            point, acceptance = self._moved(self._path.density(at, chains.args), point, size)
            point, log_w = _changed(point, log_w, torch.where(backward, -steps[last - t], 0))
            total = total + acceptance
            bar.update(len(data.backward))
        by_chain = (-1, self._settings.num_chains)
        acceptance = total.unflatten(0, by_chain).mean(1) / last
        return Run(log_w.unflatten(0, by_chain).T, acceptance)

    def _pilot(self, data: Chains, bar: Any) -> Tensor:
        """Return the step sizes of data at every temperature, ``[T + 1, N]``.

        A few chains of their own adapt along a coarser path; the geometric mean over those of a
        datum is kept.
        """
        num_chains = min(_PILOT_CHAINS, self._settings.num_chains)
        chains = data.repeated(num_chains)
        position = self.space.draw(*chains.args)
        step_size, kept = first_step_sizes(position), []
        point = self._path.density(torch.zeros_like(step_size), chains.args)(position)
        before = self._pilot_betas[0]
        for number, beta in enumerate([*[before] * _WARM_UP, *self._pilot_betas[1:]]):
            density = self._path.density(beta.expand(len(position)), chains.args)
            point = point.further((beta - before).expand(len(position)).to(position))
            point, acceptance = self._moved(density, point, step_size)
            before = beta
            target = self._settings.target_acceptance
            step_size = adapted(step_size, acceptance, target=target, rate=_PILOT_RATE)
            if number >= _WARM_UP - 1:
                kept.append(step_size.log().unflatten(0, (-1, num_chains)).mean(1))
            bar.update(len(data.backward))
        return _resampled(torch.stack(kept), len(self._betas)).exp()

    def _moved(self, density: Density, point: Point, step_size: Tensor) -> tuple[Point, Tensor]:
        return transition(density, point, step_size, num_steps=self._settings.num_steps)


def _changed(point: Point, log_w: Tensor, change: Tensor) -> tuple[Point, Tensor]:
    log_ratio = point.log_ratio
    return point.further(change.to(log_ratio)), log_w + change * log_ratio.to(log_w)


def _resampled(values: Tensor, num: int) -> Tensor:
    """Interpolate between rows, so that there are ``num`` of them."""
    place = torch.linspace(0, len(values) - 1, num, dtype=values.dtype, device=values.device)
    below = place.floor().clamp(max=len(values) - 2)
    weight = (place - below).unsqueeze(-1)
    return torch.lerp(values[below.long()], values[below.long() + 1], weight)
