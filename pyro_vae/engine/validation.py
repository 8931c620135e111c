"""The ELBO on the validation rows, split into rate and distortion, from a recording."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.engine import metrics
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import site_terms
from pyro_vae.recording.replaying import Replayed

__all__ = ["Validation"]

_CHUNK = 1000


class Validation:
    """The validation rows of a run, and how a program does on them.

    Args:
        program: The model and the guide.
        layout: Of its sites.
        rows: Observed once, as the program takes them.
        seed: Of the samples: every epoch draws the same.
        engine: How the sites' terms are computed, see ``Replayed``.
        num_epochs: How many evaluations are to be expected.
    """

    def __init__(
        self,
        program: Program,
        layout: Layout,
        rows: tuple[Tensor, ...],
        *,
        seed: int,
        engine: str,
        num_epochs: int,
    ) -> None:
        self._program, self._layout, self._seed = program, layout, seed
        self.rows = rows
        num_rows = len(rows[0])
        self._replayed = Replayed(
            program, self._terms,
            engine=engine, num_calls=num_epochs * -(-num_rows // _CHUNK),
            rare=lambda *chunk: len(chunk[0]) < min(_CHUNK, num_rows),
        )  # fmt: skip
        self._num_done = 0

    def __call__(self) -> dict[str, float]:
        """Return the ELBO, the rate and the distortion, in nats per datum."""
        rate, distortion = metrics.Mean(), metrics.Mean()
        with self._program.evaluating(seed=self._seed):
            for start in range(0, len(self.rows[0]), _CHUNK):
                chunk = tuple(row[start : start + _CHUNK] for row in self.rows)
                found = self._replayed(self._num_done, None, *chunk) or self._terms(*chunk)
                self._num_done += 1
                for mean, value in zip((rate, distortion), found, strict=True):
                    assert value is not None
                    mean.add(value, len(chunk[0]))
        nats = {"rate": rate.compute(), "distortion": distortion.compute()}
        return {
            "validation_elbo_nats": -nats["rate"] - nats["distortion"],
            "validation_rate_nats": nats["rate"],
            "validation_distortion_nats": nats["distortion"],
        }

    def _terms(self, *rows: Tensor) -> tuple[Tensor, Tensor]:
        with explaining("the program cannot be validated", self._program.reachable):
            terms = site_terms(self._program, self._layout, *rows)
        return terms.rate.mean(), terms.distortion.mean()
