"""Schedules: functions from the fraction of a run to a factor, and scheduled numbers.

A recorded step would freeze a Python number, so one that moves during training is a tensor that
is filled in place: ``Scheduled`` by the progress of the run, ``Controlled`` by the KL it measures.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door, shown

__all__ = [
    "Constant",
    "Controlled",
    "Cosine",
    "Cyclical",
    "Linear",
    "Moving",
    "Schedule",
    "Scheduled",
    "Sigmoid",
    "moving_in",
]


class Schedule:
    """Maps progress in [0, 1] to the factor of a base value; pure, so a run need not save it."""

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        raise NotImplementedError

    @property
    def ends(self) -> float:
        """The progress from which on the factor stays; past 1 where a run cuts it short."""
        return 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """The factor one, throughout."""

    def __call__(self, progress: float) -> float:
        """Return one."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine wave from one to ``final``, :math:`f + (1 - f) (1 + \cos \pi t) / 2`.

    Args:
        final: The factor at the end of the run, between 0 and 1.

    References:
        SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        _check_finite(final=self.final)
        if not 0 <= self.final <= 1:
            raise ValueError(f"final={self.final}: the final factor lies between 0 and 1")

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Linear(Schedule):
    r"""A straight line, :math:`a + (b - a) \min(t / u, 1)`, constant from ``until`` on.

    Args:
        start: The factor a at the beginning.
        end: The factor b from ``until`` on.
        until: The progress u where the line ends, positive; past 1 the run cuts it short.

    References:
        Ladder Variational Autoencoders (Sonderby et al., 2016)
    """

    start: float = 0.0
    end: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_finite(start=self.start, end=self.end, until=self.until)
        if not 0 < self.until < math.inf:
            raise ValueError(f"until={self.until}: the line ends at a positive progress")

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        done = min(progress / self.until, 1.0)
        return self.start * (1 - done) + self.end * done

    @property
    def ends(self) -> float:
        """The progress from which on the factor stays."""
        return self.until


@dataclass(frozen=True)
class Sigmoid(Schedule):
    r"""A logistic curve, :math:`\sigma((t - m) / w)`, stretched so that it runs from start to end.

    Args:
        start: The factor at the beginning.
        end: The factor at the end of the run.
        midpoint: The progress m of the steepest ascent, between 0 and 1.
        width: The width w of the ascent, positive, in progress.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
    """

    start: float = 0.0
    end: float = 1.0
    midpoint: float = 0.5
    width: float = 0.1

    def __post_init__(self) -> None:
        _check_finite(start=self.start, end=self.end, midpoint=self.midpoint, width=self.width)
        if not 0 <= self.midpoint <= 1:
            raise ValueError(f"midpoint={self.midpoint}: the midpoint lies between 0 and 1")
        if not 0 < self.width < math.inf:
            raise ValueError(f"width={self.width}: the width of the ascent is positive")

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        low, now, high = (self._logistic(t) for t in (0.0, progress, 1.0))
        done = (now - low) / (high - low)
        return self.start * (1 - done) + self.end * done

    def _logistic(self, progress: float) -> float:
        # In tanh, since exp overflows in a narrow curve.
        return math.tanh((progress - self.midpoint) / (2 * self.width))


@dataclass(frozen=True)
class Cyclical(Schedule):
    """A schedule played several times, one cycle after the other.

    Args:
        num_cycles: How many cycles the run has.
        cycle: One cycle; a line up to its half and constant from there, unless given.

    References:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing
        (Fu, Li, Liu, Gao, Celikyilmaz & Carin, 2019)
    """

    num_cycles: int = 4
    cycle: Schedule = field(default_factory=lambda: Linear(until=0.5))

    def __post_init__(self) -> None:
        _check_finite(num_cycles=self.num_cycles)
        if not isinstance(self.cycle, Schedule):
            raise ValueError(f"cycle={shown(self.cycle)}: give a schedule, such as Linear()")
        if self.num_cycles < 1 or self.num_cycles != int(self.num_cycles):
            raise ValueError(f"num_cycles={self.num_cycles}: a run has at least one cycle")

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]; the run ends at the end of a cycle."""
        done = progress * self.num_cycles
        return self.cycle(done - min(math.floor(done), self.num_cycles - 1))

    @property
    def ends(self) -> float:
        """The progress from which on the factor stays."""
        return 1.0 if self.cycle.ends <= 1 else self.cycle.ends


class Moving(nn.Module):
    """A number that moves during training: a 0-d tensor that is filled in place.

    It stands where a number would: as the weight of a handler or of an objective. A leaf says in
    ``advance`` or in ``observe`` how it moves. Its state is in buffers: it belongs to a checkpoint.

    Attributes:
        value: The number now, a 0-d tensor that never carries a gradient.
    """

    value: Tensor

    @at_the_door
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)))

    def check(self, num_steps: int) -> None:
        """Learn how many steps the run has; called once before the first."""

    def advance(self, progress: float) -> None:
        """Move to where the number is at ``progress``, in [0, 1]; called before each step."""

    def observe(self, kl: Tensor) -> None:
        """Move by what the step measured, a 0-d tensor in nats per datum; called in a step."""


class Scheduled(Moving):
    """A number that a schedule moves: ``Scheduled(Linear(0.0, 1.0, until=0.2))``.

    Args:
        schedule: From progress to the number.
        num_steps: The schedule covers so many steps; the whole run unless given.

    Raises:
        ValueError: If ``num_steps`` is less than 1.
    """

    @at_the_door
    def __init__(self, schedule: Schedule, *, num_steps: int | None = None) -> None:
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: a schedule covers at least one step")
        super().__init__(schedule(0.0))
        self.schedule = schedule
        self.num_steps = num_steps
        self._steps_of_run: int | None = None

    def check(self, num_steps: int) -> None:
        """Learn how many steps the run has, and warn if it ends before the schedule does."""
        if num_steps == 0:
            return
        self._steps_of_run = num_steps
        needed = math.ceil(self.schedule.ends * (self.num_steps or num_steps))
        if needed > num_steps:
            warnings.warn(
                f"{self.schedule} takes {needed} steps, but the run has {num_steps}: it stops at "
                f"{self._at(1.0):.4g}; shorten the schedule or train longer",
                stacklevel=2,
            )

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Fill ``value`` with the schedule's number at ``progress`` of the run, in [0, 1]."""
        self.value.fill_(self._at(progress))

    def _at(self, progress: float) -> float:
        if self.num_steps is None:
            return self.schedule(progress)
        if self._steps_of_run is None:
            raise ValueError(
                f"num_steps={self.num_steps}: the length of the run is not known; call "
                "check(num_steps) first, or leave num_steps out"
            )
        return self.schedule(min(1.0, progress * self._steps_of_run / self.num_steps))

    def extra_repr(self) -> str:
        """Show the schedule."""
        return str(self.schedule)


class Controlled(Moving):
    r"""A weight of the KL that is moved until the KL is at a target C, by a PI controller.

    .. math::
        e_t = C - KL_t, \qquad
        \beta_{t+1} = \frac{K_p}{1 + \exp e_t} - K_i \sum_{s \le t} e_s + \beta_{\min}

    The weight grows while the KL is above its target. It is held between its bounds, and the sum
    stands still while they hold it. Every step that measures the KL moves it, for the step after:
    give it to an objective that does, such as ``BetaVAE(beta=Controlled(25.0))``.

    Args:
        target: The KL aimed at, C, in nats per datum.
        proportional: The gain :math:`K_p`, per nat.
        integral: The gain :math:`K_i`, per nat and step.
        lowest: The smallest weight.
        highest: The largest weight.

    Raises:
        ValueError: If the target or a gain is negative, or the bounds are not in order.

    References:
        ControlVAE: Controllable Variational Autoencoder (Shao et al., 2020)
    """

    total: Tensor

    @at_the_door
    def __init__(
        self,
        target: float,
        *,
        proportional: float = 0.01,
        integral: float = 0.0001,
        lowest: float = 0.0,
        highest: float = 1.0,
    ) -> None:
        gains = {"target": target, "proportional": proportional, "integral": integral}
        for name, number in gains.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}={number}: expected a finite number that is not negative")
        if not 0 <= lowest < highest < math.inf:
            raise ValueError(f"lowest={lowest}, highest={highest}: the bounds are not in order")
        super().__init__(lowest)
        self.target, self.proportional, self.integral = target, proportional, integral
        self.lowest, self.highest = lowest, highest
        self.register_buffer("total", torch.zeros(()))

    @torch.no_grad()
    def observe(self, kl: Tensor) -> None:
        """Move the weight by a measured KL, a 0-d tensor in nats per datum."""
        error = self.target - kl.to(self.total)
        total = self.total - self.integral * error
        wanted = self.proportional * torch.sigmoid(-error) + total + self.lowest
        held = wanted.clamp(self.lowest, self.highest)
        # At a bound, what would push further is not kept: it would have to be undone later.
        pushes = (wanted > held) & (error < 0) | (wanted < held) & (error > 0)
        self.total.copy_(torch.where(pushes, self.total, total))
        self.value.copy_(held)

    def extra_repr(self) -> str:
        """Show the target."""
        return f"target={self.target}"


def moving_in(*roots: Any) -> list[Moving]:
    """Return every number that moves in programs, handlers and objectives, each once.

    Args:
        roots: Models and guides (wrapped in handlers or not), modules, and objectives.
    """
    found: dict[int, Moving] = {}
    for root in roots:
        for number in _moving(root, set()):
            found.setdefault(id(number), number)
    return list(found.values())


def _moving(root: Any, seen: set[int]) -> Iterator[Moving]:
    if id(root) in seen:
        return
    seen.add(id(root))
    if isinstance(root, nn.Module):
        yield from (module for module in root.modules() if isinstance(module, Moving))
    for part in _parts(root):
        yield from _moving(part, seen)


def _parts(root: Any) -> list[Any]:
    """Return what a wrapped function, a handler, an objective or a container holds."""
    if isinstance(root, functools.partial):
        return [root.func, *root.args, *root.keywords.values()]
    if isinstance(root, (list, tuple)):
        return list(root)
    if isinstance(root, dict):
        return list(root.values())
    owner = getattr(root, "__self__", None)
    parts = [owner] if owner is not None else []
    # Recognised by its method, since objectives import this module.
    if isinstance(root, (Messenger, nn.Module)) or hasattr(root, "differentiable_loss"):
        parts += [part for part in vars(root).values() if not isinstance(part, Tensor)]
    return parts


def current(number: float | Tensor | Moving) -> Any:
    """Return a number, or the tensor that holds it if it moves."""
    return number.value if isinstance(number, Moving) else number


def check_weight(name: str, number: float | Tensor | Moving) -> None:
    """Refuse a weight that is negative now or, if a schedule moves it, at any time.

    Raises:
        ValueError: If it is negative or not a number.
    """
    now = current(number)
    if not isinstance(now, Real | Tensor) or (isinstance(now, Tensor) and now.numel() != 1):
        raise ValueError(f"{name}={shown(number)}: give a number")
    values = [float(now)]
    if isinstance(number, Scheduled):
        values += [number.schedule(step / 100) for step in range(101)]
    wrong = sorted(value for value in values if not 0 <= value < math.inf)
    if wrong:
        raise ValueError(f"{name}={wrong[0]:g}: a weight is finite and not negative")


def _check_finite(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (isinstance(number, Real) and math.isfinite(number)):
            raise ValueError(f"{name}={shown(number)}: expected a finite number")
