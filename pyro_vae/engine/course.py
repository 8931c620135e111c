"""Detect divergence and overfitting in the history of a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyro_vae.inference.quantities import (
    ELBO_NATS,
    trained_value,
    validated_value,
    validation_title,
)
from pyro_vae.wording import option

__all__ = ["Divergence", "Overfitting", "divergence", "is_rising", "overfitting"]

_ABSURD_NATS = 1e6  # no posterior costs so much that is of use
_WORSE_NATS = 10.0  # than before training, and twice as bad: noise does not come so far
_LOST = 0.5  # of what was gained, in validation and in training alike
_LAST_EPOCHS = 3
_TIMES_NOISE = 5.0
_LEAST_NATS = 0.1
_STILL = 0.02  # of all that was gained, in the last epoch


class Divergence(NamedTuple):
    """Training that went wrong without a number that is not finite.

    Attributes:
        epoch: The first epoch after which it stood badly.
        value: What is validated, at its worst.
        start_value: That of the untrained program, or after the first epoch.
        came_back: Whether the last epoch stands well again.
        title: The name and the unit of what is validated.
    """

    epoch: int
    value: float
    start_value: float
    came_back: bool
    title: tuple[str, str] = (ELBO_NATS.title, ELBO_NATS.unit)

    def __str__(self) -> str:
        """Say what happened, and what to try."""
        name, unit = self.title
        where = (
            f"{self.value:,.4g} {unit} of validation {name}, where {self.start_value:,.4g} was "
            "before"
        )
        end = "came back" if self.came_back else "did not come back"
        what = "exploded" if self.came_back else "diverged"
        return (
            f"training {what} in epoch {self.epoch} and {end}: {where}; lower the learning rate "
            f"({option('lr', python='lr of optim')}), or bound the gradient "
            f"({option('clip_norm', 100)})"
        )


class Overfitting(NamedTuple):
    """Validation that falls while training rises.

    Attributes:
        epoch: The last epoch before validation fell, which is the best.
        fallen: By how much what is validated fell from then to the end.
        risen: By how much the training value rose.
        title: The name and the unit of what is validated.
    """

    epoch: int
    fallen: float
    risen: float
    title: tuple[str, str] = (ELBO_NATS.title, ELBO_NATS.unit)

    def __str__(self) -> str:
        """Say what happened, and what to try."""
        name, unit = self.title
        latents = option("latent", python="latent_shape")
        hidden = option("network.hidden", python="hidden")
        return (
            f"the run overfits: since epoch {self.epoch} the validation {name} fell by "
            f"{self.fallen:,.2f} {unit} while training rose by {self.risen:,.2f}; try "
            f"fewer epochs ({option('epochs', self.epoch)}, or {option('patience', 10)}), a "
            f"smaller network or fewer latents ({hidden}, {latents}), or more data"
        )


def divergence(
    history: Sequence[Mapping[str, Any]], start: Mapping[str, float] | None = None
) -> Divergence | None:
    """Return how training went wrong; None where it did not.

    An epoch stands badly if both ELBO and distortion are worse than before training, the latter by
    more than all that training gained and than itself, or the rate is absurd, and so is what was
    trained on, or else the run overfits; a KL that was weighted by little makes the ELBO alone
    worse. A run diverged, too, if it ends with less than half of what it had gained, in validation
    as in training.

    Args:
        history: One record per epoch, of ``Fit``.
        start: ``validation_*_nats`` before the first step; those of the first epoch unless given.
    """
    if not history:
        return None
    before = start or history[0]
    elbo, distortion = validated_value(before), _distortion(before)
    found = [_distortion(record) for record in history]
    margin = max(distortion - min(found), abs(distortion), _WORSE_NATS)
    bad = [
        record
        for record in history
        if max(validated_value(record), trained_value(record)) < elbo
        and (
            _distortion(record) > distortion + margin
            or record.get("validation_rate_nats", 0.0) > _ABSURD_NATS
        )
    ]
    if bad:
        worst = min(map(validated_value, bad))
        came_back = bad[-1] is not history[-1]
        return Divergence(bad[0]["epoch"], worst, elbo, came_back, validation_title(before))
    return _fallen_back(history, elbo)


def _fallen_back(history: Sequence[Mapping[str, Any]], start_nats: float) -> Divergence | None:
    found, trained = [*map(validated_value, history)], [*map(trained_value, history)]
    best, last = max(found), found[-1]
    gained = best - start_nats
    lost_in_training = max(trained) - trained[-1] > _LOST * (max(trained) - trained[0])
    after = [r for r in history if r["epoch"] > 1 + found.index(best)]
    if not (after and gained > 0 and lost_in_training and best - last > max(_LOST * gained, 1.0)):
        return None
    first = next(record for record in after if best - validated_value(record) > _LOST * gained)
    return Divergence(first["epoch"], last, best, False, validation_title(first))


def overfitting(history: Sequence[Mapping[str, Any]]) -> Overfitting | None:
    """Return since when, and by how much, validation falls while training rises, beyond noise.

    Args:
        history: One record per epoch, of ``Fit``.
    """
    found, trained = [*map(validated_value, history)], [*map(trained_value, history)]
    best = found.index(max(found)) if found else 0
    if len(found) - best <= _LAST_EPOCHS:
        return None
    fallen = found[best] - statistics.fmean(found[-_LAST_EPOCHS:])
    risen = statistics.fmean(trained[-_LAST_EPOCHS:]) - trained[best]
    if fallen <= max(_TIMES_NOISE * _noise(found[best:]), _LEAST_NATS):
        return None
    if risen <= _TIMES_NOISE * _noise(trained[best:]) / math.sqrt(_LAST_EPOCHS):
        return None
    return Overfitting(history[best]["epoch"], fallen, risen, validation_title(history[best]))


def _distortion(record: Mapping[str, Any]) -> float:
    """Return what is not told of the data; of what has no such term, the value with its sign."""
    return float(record.get("validation_distortion_nats", -validated_value(record)))


def is_rising(
    history: Sequence[Mapping[str, Any]], start: Mapping[str, float] | None = None
) -> bool:
    """Return whether training stopped while the value of the validation data still rose.

    Args:
        history: One record per epoch, of ``Fit``.
        start: ``validation_*_nats`` before the first step; those of the first epoch unless given.
    """
    found = [*map(validated_value, [*([start] if start else []), *history])]
    if len(found) < 2 or found[-1] < max(found):
        return False
    last, gained = found[-1] - found[-2], found[-1] - found[0]
    return last > max(_STILL * gained, _LEAST_NATS)


def _noise(values: Sequence[float]) -> float:
    """Return the standard deviation of values about a smooth course, by second differences."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return 1.4826 * statistics.median(bends) / math.sqrt(6) if bends else 0.0
