"""Does a tighter bound train the encoder better? Signal-to-noise ratios against the particles.

    python experiments/rainforth2018_tighter.py --scale smoke|cpu|paper

Held against Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018):
theorem 1, by which with M groups of K particles the ratio of the encoder's gradient behaves as
sqrt(M / K) and that of the decoder's as sqrt(M K), and figure 2, which shows both rates for K = 1
(VAE) and M = 1 (IWAE) on the program of ``linear_gaussian.py``, 20 latents, offset 0.01. For DReG,
against Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker, Lawson, Gu
& Maddison, 2019), figure 1: the encoder's ratio grows. For CIWAE the ELBO in it decides: the other
part's expected gradient vanishes.

The ratio of a part is the root of the summed squares of its expected gradient over the root of
the summed variances; what noise adds to the former is subtracted. Slopes are those of the last
three numbers of particles, from 64 on at the scales cpu and paper: before, the decoder's expected
gradient still holds the encoder's error, which falls as 1 / K and here is the larger part. (With
K = 32 at most, MIWAE's decoder does not come out of it.) Errors are jackknife errors over groups
of estimates: they hold the Monte-Carlo error alone, not the distance from the theorem's limit.
IWAE's expected encoder gradient is read off DReG's estimates, whose expectation is the same: by
its own, it would sink in the noise that the paper is about.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from linear_gaussian import LinearGaussian, data, gradients, jackknifed, slope
from study import ScaleName, Study
from torch import Tensor

from pyro_vae.inference import CIWAE, ELBO, IWAE, MIWAE, PIWAE, DReG, Objective

_NUM_FITTED = 3  # of the numbers of particles


class Scale(NamedTuple):
    """How much of the published setting is run; slopes are the same for any number of data."""

    num_data: int
    num_estimates: int
    particles: tuple[int, ...]


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(16, 40, (1, 4, 16)),
    "cpu": Scale(64, 250, (1, 4, 16, 64, 256, 1024)),
    "paper": Scale(1024, 10_000, (1, 4, 16, 64, 256, 1024)),
}


class Estimator(NamedTuple):
    """A family of objectives, one for each number of particles, and the slopes to expect."""

    objective: Callable[[int], Objective]
    encoder_slope: float
    decoder_slope: float = 0.5
    encoder_like: str = ""  # whose encoder gradient has the same expectation


ESTIMATORS = {
    "VAE (K = 1)": Estimator(ELBO, 0.5),
    "IWAE (M = 1)": Estimator(IWAE, -0.5, encoder_like="DReG"),
    "MIWAE (M = K)": Estimator(lambda s: MIWAE(s, math.isqrt(s)), 0.0),
    "PIWAE (M = K)": Estimator(lambda s: PIWAE(s, math.isqrt(s)), 0.0),
    "CIWAE (beta = 1/2)": Estimator(lambda s: CIWAE(0.5, s), 0.5),
    "DReG": Estimator(DReG, 0.5),
}


def signal_to_noise(estimates: Tensor, like: Tensor) -> Tensor:
    """Return the ratio of ``estimates``, whose expectation is that of ``like``; both ``[R, P]``."""
    signal = (like.mean(0) ** 2 - like.var(0) / len(like)).sum()
    return (signal.clamp(min=0) / estimates.var(0).sum()).sqrt()


def ratios(*samples: Tensor) -> Tensor:
    """Return a ratio for each number of particles; the second half of ``samples`` is ``like``."""
    half = len(samples) // 2
    pairs = zip(samples[:half], samples[half:], strict=True)
    return torch.stack([signal_to_noise(*pair) for pair in pairs])


def measure(scale: Scale) -> dict[str, Any]:
    """Return for each estimator and part the ratios, their slope, and the expected one."""
    x = data(scale.num_data)
    program = LinearGaussian(x)
    found: dict[str, list[dict[str, Tensor]]] = {}
    for name, estimator in ESTIMATORS.items():
        start = time.perf_counter()
        found[name] = [
            gradients(program, x, estimator.objective(num_particles), scale.num_estimates)
            for num_particles in scale.particles
        ]
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    rows: dict[str, Any] = {}
    for name, (_, encoder_slope, decoder_slope, like) in ESTIMATORS.items():
        of_encoder = [each["encoder"] for each in [*found[name], *found[like or name]]]
        of_decoder = [each["decoder"] for each in [*found[name], *found[name]]]
        rows[name] = {
            "encoder": _line(scale.particles, of_encoder, encoder_slope),
            "decoder": _line(scale.particles, of_decoder, decoder_slope),
        }
    return rows


def _line(particles: Sequence[int], samples: Sequence[Tensor], expected: float) -> dict[str, Any]:
    values, errors = jackknifed(ratios, *samples)

    def last(*samples: Tensor) -> Tensor:
        return slope(particles[-_NUM_FITTED:], ratios(*samples)[-_NUM_FITTED:])

    fitted, error = jackknifed(last, *samples)
    return {
        "ratio": values.tolist(),
        "ratio_standard_error": errors.tolist(),
        "slope": fitted.item(),
        "slope_standard_error": error.item(),
        "expected_slope": expected,
    }


def draw(study: Study[Scale]) -> None:
    """Draw the ratios of both parts against the particles, as figure 2 of the paper."""
    with study.figure(2, size=(11, 4.6), sharey=True, legend="slope of log ratio") as panels:
        for axes, part in zip(panels, ("encoder", "decoder"), strict=True):
            for name, row in study.rows.items():
                line = row[part]
                label = f"{name}: {line['slope']:+.2f} ± {line['slope_standard_error']:.2f}"
                label += f" (expected {line['expected_slope']:+.1f})"
                points = (study.scale.particles, line["ratio"], line["ratio_standard_error"])
                axes.errorbar(*points, fmt="o-", ms=3, capsize=2, label=label)
            axes.set(xscale="log", yscale="log", title=part)
            axes.set_xlabel("particles, S = M K")
        panels[0].set_ylabel("signal-to-noise ratio of the gradient")


def table(rows: Mapping[str, Any]) -> list[str]:
    """Return lines of Markdown: the slope of each estimator and part, and the expected one."""
    lines = ["| objective | encoder | expected | decoder | expected |", "| --- " * 5 + "|"]
    for name, row in rows.items():
        cells = [
            f"{row[part]['slope']:+.3f} ± {row[part]['slope_standard_error']:.3f} | "
            f"{row[part]['expected_slope']:+.1f}"
            for part in ("encoder", "decoder")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Measure the ratios; print the slopes, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        for title, row in measure(study.scale).items():
            study.keep(title, row)
        print("\n".join(table(study.rows)))
        draw(study)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
