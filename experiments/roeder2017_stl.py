"""Does the gradient come to rest at the exact posterior? Its noise against the distance from it.

    python experiments/roeder2017_stl.py --scale smoke|cpu|paper

Held against Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
Inference (Roeder, Wu & Duvenaud, 2017), section 3: without the score, the variance of the
encoder's gradient vanishes as q approaches the exact posterior; with it, it does not.

On the linear-Gaussian program of ``linear_gaussian.py`` with posterior variance 1/2, under
the ELBO of one particle, at q's variance v = exp(t) / 2: the noise is the root of the summed
variances over the encoder's parameters of the gradient per datum. In closed form it is c times
what depends on the data alone, with c = 2 sqrt(v) for the full gradient and |2 - 1 / v| sqrt(v)
without the score: slopes of log noise on log t near 0 and 1. The paper's table on MNIST is not
held against here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from linear_gaussian import LinearGaussian, data, gradients, jackknifed, slope
from study import ScaleName, Study
from torch import Tensor

from pyro_vae.inference import ELBO, StickingTheLanding

# The distances t whose slope is fitted, and the exact posterior itself.
DISTANCES = (0.1, 0.03, 0.01, 0.003, 0.001)


class Scale(NamedTuple):
    """How many data, and how many estimates of the gradient at each distance."""

    num_data: int
    num_estimates: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(16, 40),
    "cpu": Scale(64, 1_000),
    "paper": Scale(1024, 10_000),
}


class Gradient(NamedTuple):
    """A way to take the gradient: what is done to the guide, and its noise in closed form."""

    handled: Callable[[Any], Any]
    factor: Callable[[float], float]


GRADIENTS = {
    "full": Gradient(lambda guide: guide, lambda v: 2 * math.sqrt(v)),
    "without the score": Gradient(StickingTheLanding(), lambda v: abs(2 - 1 / v) * math.sqrt(v)),
}


def noise(estimates: Tensor) -> Tensor:
    """Return the root of the summed variances of estimates ``[R, P]``."""
    return estimates.var(0).sum().sqrt()


def closed_form(x: Tensor, factor: float) -> float:
    """Return the noise of the mean gradient over ``x``, ``[N, D]``, with respect to A and b."""
    of_data = x.shape[1] * (1 + x.square().sum(-1)).sum() / len(x) ** 2
    return factor * math.sqrt(of_data.item())


def measure(scale: Scale) -> dict[str, Any]:
    """Return the noise of each gradient at each distance, its closed form and its slope."""
    x = data(scale.num_data).double()
    found = {}
    for name, (handled, factor) in GRADIENTS.items():
        samples, exact = [], []
        for distance in (*DISTANCES, 0.0):
            variance = math.exp(distance) / 2
            program = LinearGaussian(x, variance=variance)
            guide = handled(program.guide)
            samples.append(gradients(program, x, ELBO(), scale.num_estimates, guide)["encoder"])
            exact.append(closed_form(x, factor(variance)))
        found[name] = _line(samples, exact)
    return found


def _line(samples: Sequence[Tensor], exact: Sequence[float]) -> dict[str, Any]:
    def noises(*samples: Tensor) -> Tensor:
        return torch.stack([noise(sample) for sample in samples])

    values, errors = jackknifed(noises, *samples)
    fitted, error = jackknifed(lambda *s: slope(DISTANCES, noises(*s)), *samples[:-1])
    return {
        "noise": values.tolist(),
        "noise_standard_error": errors.tolist(),
        "closed_form": list(exact),
        "slope": fitted.item(),
        "slope_standard_error": error.item(),
        "closed_form_slope": slope(DISTANCES, torch.tensor(exact[:-1]).double()).item(),
    }


def draw(study: Study[Scale]) -> None:
    """Draw the noise against the distance, with its closed form."""
    with study.figure(1, size=(6, 4.4), legend="lines: closed form") as (axes,):
        for name, row in study.rows.items():
            label = f"{name}: slope {row['slope']:+.3f} ± {row['slope_standard_error']:.3f}"
            values, errors = row["noise"][:-1], row["noise_standard_error"][:-1]
            points = axes.errorbar(DISTANCES, values, errors, fmt="o", ms=4, capsize=2, label=label)
            colour = points.lines[0].get_color()
            axes.plot(DISTANCES, row["closed_form"][:-1], color=colour, lw=1)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("distance t of q from the exact posterior, v = exp(t) / 2")
        axes.set_ylabel("noise of the encoder's gradient, nats per datum")


def main(scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Measure the noise; print the slopes, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        study.note(distances=[*DISTANCES, 0.0])
        for title, row in measure(study.scale).items():
            study.keep(title, row)
            print(
                f"{title}: slope {row['slope']:+.4f} ± {row['slope_standard_error']:.4f}, closed "
                f"form {row['closed_form_slope']:+.4f}; at the exact posterior the noise is "
                f"{row['noise'][-1]:.1e}, closed form {row['closed_form'][-1]:.1e}"
            )
        draw(study)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
