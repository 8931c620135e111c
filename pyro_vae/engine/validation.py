"""What is maximised, on the validation rows, from a recording: of bounds the ELBO in two terms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae.engine import metrics
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.quantities import ELBO_NATS
from pyro_vae.inference.terms import SiteTerms, site_terms
from pyro_vae.recording.replaying import Replayed

__all__ = ["Validation"]

_CHUNK = 1000
# Marked sites of more values are sampled here: validation costs less than training.
_MOST_STRATA = 100


class Validation:
    """The validation rows of a run, and how a program does on them.

    Args:
        probe: Of the program.
        objective: What is maximised.
        rows: Observed once, as the program takes them.
        seed: Of the samples: every epoch draws the same.
        engine: How the sites' terms are computed, see ``Replayed``.
        num_epochs: How many evaluations are to be expected.
    """

    def __init__(
        self,
        probe: Probe,
        objective: Any,
        rows: tuple[Tensor, ...],
        *,
        seed: int,
        engine: str,
        num_epochs: int,
    ) -> None:
        self._program, self._layout, self._seed = probe.program, probe.layout, seed
        self._objective = objective
        self.quantity = getattr(objective, "quantity", ELBO_NATS)
        terms = ("rate", "distortion") if self.quantity.is_bound else (self.quantity.key,)
        self._names = (*terms, *(f"{name}_loss" for name in probe.terms.auxiliary))
        self.rows = rows
        strata = probe.layout.strata
        self._exact = strata.obstacle is None and 1 <= strata.num <= _MOST_STRATA
        self._chunk = max(1, _CHUNK // strata.num) if self._exact else _CHUNK
        num_rows = len(rows[0])
        self._replayed = Replayed(
            probe.program, self._terms,
            engine=engine, num_calls=num_epochs * -(-num_rows // self._chunk),
            rare=lambda *chunk: len(chunk[0]) < min(self._chunk, num_rows),
        )  # fmt: skip
        self._num_done = 0

    def __call__(self) -> dict[str, float]:
        """Return the means per datum: the ELBO, rate and distortion, or the one quantity.

        With them the auxiliary losses of components.
        """
        means = {name: metrics.Mean() for name in self._names}
        with self._program.evaluating(seed=self._seed):
            for start in range(0, len(self.rows[0]), self._chunk):
                chunk = tuple(row[start : start + self._chunk] for row in self.rows)
                found = self._replayed(self._num_done, None, *chunk) or self._terms(*chunk)
                self._num_done += 1
                for mean, value in zip(means.values(), found, strict=True):
                    assert value is not None
                    mean.add(value, len(chunk[0]))
        found_means = {name: mean.compute() for name, mean in means.items()}
        if not self.quantity.is_bound:
            return {self.quantity.validation_key: found_means.pop(self.quantity.key), **found_means}
        rate, distortion = found_means.pop("rate"), found_means.pop("distortion")
        return {
            "validation_elbo_nats": -rate - distortion,
            "validation_rate_nats": rate,
            "validation_distortion_nats": distortion,
            **found_means,
        }

    def _terms(self, *rows: Tensor) -> tuple[Tensor, ...]:
        is_bound = self.quantity.is_bound
        with explaining("the program cannot be validated", self._program.reachable):
            if not is_bound and type(self._objective).table is not Objective.table:
                terms = self._objective.table(self._program, self._layout, *rows)
            else:
                terms = site_terms(
                    self._program, self._layout, *rows, bounded=is_bound, in_strata=self._exact
                )
        losses = [_mean(terms, loss) for loss in terms.auxiliary.values()]
        if not is_bound:
            return (self._objective.value(terms).mean(), *losses)
        return (_mean(terms, terms.rate), _mean(terms, terms.distortion), *losses)


def _mean(terms: SiteTerms, values: Tensor) -> Tensor:
    """Return the mean of ``[S, B]`` over particles and data."""
    return values.mean() if terms.log_share is None else terms.average(values).mean()
