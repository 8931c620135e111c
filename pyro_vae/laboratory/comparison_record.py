"""The results of a comparison of objectives, as numbers and as text."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pyro.infer import ELBO

from pyro_vae.evaluation.estimates import Estimate

__all__ = ["Comparison", "PartOfGradient", "Point", "Row", "described", "named", "text"]


@dataclass(frozen=True)
class PartOfGradient:
    """What is measured of the gradient of the model, or of the guide.

    Attributes:
        relative_bias: Against the gradient of the bound that the objective reports, see
            ``Gradients.relative_bias``; None where no such gradient is known.
        snr: The signal-to-noise ratio, see ``Gradients.snr``.
        total_variance: The variance summed over parameters, in squared nats per datum.
    """

    relative_bias: Estimate | None
    snr: Estimate
    total_variance: Estimate


@dataclass(frozen=True)
class Point:
    """Held-out data part-way through training.

    Attributes:
        step: The number of gradient steps.
        seconds: What these take, at the objective's median time per step.
        elbo_nats: The ELBO, whatever was optimised, in nats per datum.
        log_p_nats: log p(x) by importance sampling, in nats per datum.
        gain_nats: The difference of ``log_p_nats`` to the first objective's at the same step, or
            at equal time, datum by datum; its error is smaller than those of both. None elsewhere.
        rate_nats: The KL of the posterior from the prior, in nats per datum.
        distortion_nats: The average of -log p(x | z); the ELBO is -(rate + distortion).
    """

    step: int
    seconds: float
    elbo_nats: Estimate
    log_p_nats: Estimate
    gain_nats: Estimate | None = None
    rate_nats: float = math.nan
    distortion_nats: float = math.nan


@dataclass(frozen=True)
class Row:
    """One objective.

    Attributes:
        objective: Its name, and those of its arguments that are not the default's.
        failure: Why it cannot train this program, or stopped; None if it did not.
        model: Its gradient in the model's parameters.
        guide: Its gradient in the guide's.
        model_from_log_p: The relative bias of the model's gradient against that of log p(x).
        seconds_per_step: The median over rounds in turns with the others.
        time_ratio: The same in units of the first objective's, the median of rounds.
        bound_nats: The bound that it reports, on held-out data after all steps, in nats per
            datum; None for objectives that report no bound for each datum.
        curve: Held-out data along the way.
        at_equal_steps: After all steps.
        at_equal_time: After the time that the fastest objective took for all steps.
    """

    objective: str
    failure: str | None = None
    model: PartOfGradient | None = None
    guide: PartOfGradient | None = None
    model_from_log_p: Estimate | None = None
    seconds_per_step: Estimate | None = None
    time_ratio: Estimate | None = None
    bound_nats: Estimate | None = None
    curve: list[Point] = field(default_factory=list)
    at_equal_steps: Point | None = None
    at_equal_time: Point | None = None

    @property
    def summary(self) -> str:
        """One line: where it got to, or why not."""
        point = self.at_equal_steps
        if point is None:
            return self.failure or "not trained"
        return (
            f"log p(x) {_number(point.log_p_nats)} nats, ELBO {_number(point.elbo_nats)} nats, "
            f"{_number(self.time_ratio)} times the first one's time per step"
        )


@dataclass(frozen=True)
class Comparison:
    """What the laboratory found.

    Attributes:
        rows: One for each objective, in the order given.
        settings: What the numbers depend on.
    """

    rows: list[Row]
    settings: dict[str, Any]

    def table(self) -> str:
        """Return the numbers as lines of plain text."""
        return text(self.rows, self.settings)

    def record(self) -> dict[str, Any]:
        """Return all numbers for JSON; what is not finite is None."""
        return _plain({"settings": self.settings, "rows": [asdict(row) for row in self.rows]})


def named(objectives: Sequence[ELBO] | Mapping[str, ELBO]) -> dict[str, ELBO]:
    """Return objectives by name, those of a list after their arguments.

    Raises:
        ValueError: If there is none, two have one name, or one is no objective.
    """
    if isinstance(objectives, ELBO):
        raise ValueError(f"objectives={described(objectives)}: give a list of objectives")
    if not objectives:
        raise ValueError("objectives is empty: give at least one, such as [ELBO(), IWAE(16)]")
    if isinstance(objectives, Mapping):
        pairs = list(objectives.items())
    else:
        pairs = [(described(objective), objective) for objective in objectives]
    found: dict[str, ELBO] = {}
    for name, objective in pairs:
        if not isinstance(objective, ELBO):
            raise ValueError(f"objectives has {objective!r}: expected objects such as ELBO()")
        if name in found:
            raise ValueError(f"objectives has {name} twice: give each once")
        found[name] = objective
    return found


def described(objective: Any) -> str:
    """Return an objective's name, with its arguments that are not the defaults.

    The number of particles is always given, unless one is the default: bounds depend on it.
    """
    kind = type(objective)
    given = []
    for name, parameter in inspect.signature(kind).parameters.items():
        value = getattr(objective, name, parameter.default)
        several = name == "num_particles" and parameter.default not in (1, parameter.empty)
        if several or (name in vars(objective) and _differs(value, parameter.default)):
            given.append(f"{name}={_short(value)}")
    return f"{kind.__name__}({', '.join(given)})" if given else kind.__name__


def _differs(value: Any, default: Any) -> bool:
    return value is not default and not (_is_plain(value) and value == default)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, str, tuple, bool))


def _short(value: Any) -> str:
    return f"{value!r}" if _is_plain(value) else f"{type(value).__name__}"


def text(rows: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """Return the tables of a comparison, and what stands in them.

    Args:
        rows: Those of a ``Comparison``.
        settings: Its settings.
    """
    trained = [row for row in rows if row.at_equal_steps is not None]
    measured = [row for row in rows if row.model is not None]
    lines = [*_gradients(measured, settings), "", *_training(trained, settings)]
    failed = [f"  {row.objective}: {row.failure}" for row in rows if row.failure is not None]
    if failed:
        lines += ["", "Not trained:", *failed]
    return "\n".join(lines)


def _gradients(rows: Sequence[Any], settings: Mapping[str, Any]) -> list[str]:
    cells = [
        ["", "model:", "", "", "", "guide:", "", ""],
        [
            "objective",
            *["bias %", "off log p %", "SNR", "variance"],
            *["bias %", "SNR", "variance"],
        ],
    ]
    for row in rows:
        model, guide = row.model, row.guide
        cells.append(
            [
                row.objective,
                _percent(model.relative_bias), _percent(row.model_from_log_p),
                _number(model.snr), _number(model.total_variance),
                _percent(guide.relative_bias), _number(guide.snr), _number(guide.total_variance),
            ]
        )  # fmt: skip
    return [
        f"Gradients at the same weights, after {settings['warm_up_epochs']} epochs of the ELBO, on "
        f"{settings['num_rows']} data, {settings['num_repeats']} times",
        *_columns(cells),
        "bias: the mean's distance from the gradient of the reported bound, relative to its length",
        "off log p: the same from the gradient of log p(x); variance: summed over parameters",
        f"SNR: |mean| / standard deviation, mean over parameters; noise alone reads "
        f"{settings['snr_floor']:.3f}",
    ]


def _training(rows: Sequence[Any], settings: Mapping[str, Any]) -> list[str]:
    base = rows[0].objective if rows else ""
    after_steps = [["objective", "own bound", "ELBO", "log p(x)", "gain"]]
    after_time = [["objective", "ms a step", "times", "steps", "ELBO", "log p(x)", "gain"]]
    for row in rows:
        late, timed = row.at_equal_steps, row.at_equal_time
        after_steps.append([row.objective, _number(row.bound_nats), *_nats(late, row is rows[0])])
        times = _number(row.seconds_per_step, 1e3), _number(row.time_ratio), str(timed.step)
        after_time.append([row.objective, *times, *_nats(timed, row is rows[0])])
    return [
        f"After {settings['num_steps']} steps from the same weights, on {settings['num_test']} "
        "held-out data, nats per datum",
        *_columns(after_steps),
        f"gain: log p(x) less {base}'s, datum by datum; +- is one standard error",
        "",
        f"After {settings['equal_seconds']:.3g} seconds of steps",
        *_columns(after_time),
        f"times: a step's time over {base}'s",
    ]


def _nats(point: Any, is_first: bool) -> list[str]:
    gain = "" if is_first else _number(point.gain_nats)
    return [_number(point.elbo_nats), _number(point.log_p_nats), gain]


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _percent(estimate: Any) -> str:
    return _number(estimate, 100)


def _number(estimate: Any, factor: float = 1.0) -> str:
    """Write a number to the digit where its standard error begins."""
    if estimate is None or not math.isfinite(estimate.value):
        return "-"
    value, error = factor * estimate.value, factor * estimate.standard_error
    if not math.isfinite(error):
        return f"{value:.4g}"
    if max(abs(value), error) >= 1e6 or 0 < max(abs(value), error) < 1e-4:
        return f"{value:.2e}+-{error:.0e}"
    return f"{value:.{_places(error)}f}+-{error:.{_places(error)}f}"


def _places(error: float) -> int:
    if error <= 0:
        return 2
    place = math.floor(math.log10(error))
    return min(6, max(0, -place + (error < 2 * 10**place)))


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return _plain({"value": value.value, "standard_error": value.standard_error})
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
