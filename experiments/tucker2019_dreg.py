"""Is the doubly reparameterised gradient unbiased, and that without the score biased?

    python experiments/tucker2019_dreg.py --scale smoke|cpu|paper

Held against Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker, Lawson,
Gu & Maddison, 2019), sections 3 and 6.1 and figure 1, on the linear-Gaussian program of
``linear_gaussian.py``: for the importance-weighted bound of K particles, the encoder's
gradient of Roeder, Wu & Duvenaud (2017), which leaves the score out, is biased for K > 1; theirs
is not, has the smaller variance, and its signal-to-noise ratio grows with K.

The squared bias is the squared distance of two means less what noise adds to it, over the squared
norm of the expected gradient; it may come out negative where there is none. DReG is held against
IWAE's own gradient, the other against DReG. The noise is the root of the summed variances, over
that norm. Errors are jackknife errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import auto_cli
from linear_gaussian import LinearGaussian, data, gradients, jackknifed
from rainforth2018_tighter import Scale
from study import ScaleName, Study
from torch import Tensor

from pyro_vae.inference import IWAE, DReG, StickingTheLanding

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(16, 60, (1, 4)),
    "cpu": Scale(64, 1_000, (1, 2, 4, 8, 16, 32, 64)),
    "paper": Scale(1024, 10_000, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)),
}


def squared_norm(estimates: Tensor) -> Tensor:
    """Return the squared norm of the mean of estimates ``[R, P]``, less what noise adds to it."""
    return (estimates.mean(0).square() - estimates.var(0) / len(estimates)).sum()


def squared_bias(estimates: Tensor, reference: Tensor, unit: Tensor) -> Tensor:
    """Return the squared bias of ``estimates`` in units of the norm of the mean of ``unit``."""
    distance = (estimates.mean(0) - reference.mean(0)).square().sum()
    by_noise = sum(each.var(0).sum() / len(each) for each in (estimates, reference))
    return (distance - by_noise) / squared_norm(unit)


def relative_noise(estimates: Tensor, unit: Tensor) -> Tensor:
    """Return the noise of ``estimates`` in units of the norm of the mean of ``unit``."""
    return (estimates.var(0).sum() / squared_norm(unit)).sqrt()


def measure(scale: Scale) -> dict[str, dict[str, list[float]]]:
    """Return squared bias and noise of each gradient for each number of particles."""
    x = data(scale.num_data)
    program = LinearGaussian(x)
    without_score = StickingTheLanding()(program.guide)
    found: dict[str, dict[str, list[float]]] = {"IWAE": {}, "without the score": {}, "DReG": {}}
    for num_particles in scale.particles:
        iwae, landing, dreg = (
            gradients(program, x, objective, scale.num_estimates, guide)["encoder"]
            for objective, guide in (
                (IWAE(num_particles), program.guide),
                (IWAE(num_particles), without_score),
                (DReG(num_particles), program.guide),
            )
        )
        for row, estimates in zip(found.values(), (iwae, landing, dreg), strict=True):
            _append(row, "noise", relative_noise, estimates, dreg)
        _append(found["without the score"], "squared_bias", squared_bias, landing, dreg, dreg)
        _append(found["DReG"], "squared_bias", squared_bias, dreg, iwae, dreg)
    return found


def _append(
    row: dict[str, list[float]], key: str, statistic: Callable[..., Tensor], *samples: Tensor
) -> None:
    value, error = jackknifed(statistic, *samples)
    row.setdefault(key, []).append(value.item())
    row.setdefault(f"{key}_standard_error", []).append(error.item())


def draw(study: Study[Scale]) -> None:
    """Draw squared bias and noise against the particles."""
    titles = {"squared_bias": "squared bias", "noise": "noise"}
    with study.figure(2, size=(10, 4.2)) as panels:
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            for colour, (name, row) in zip(("C0", "C1", "C2"), study.rows.items(), strict=True):
                if key in row:
                    points = (study.scale.particles, row[key], row[f"{key}_standard_error"])
                    style = {"fmt": "o-", "ms": 3, "capsize": 2, "color": colour, "label": name}
                    axes.errorbar(*points, **style)
            axes.set(xscale="log", title=f"{title} of the encoder's gradient")
            axes.set_xlabel("particles, K")
        panels[0].set_yscale("symlog", linthresh=0.1)
        panels[0].set_ylabel("over the squared norm of the expected gradient")
        panels[1].set_yscale("log")
        panels[1].set_ylabel("over the norm of the expected gradient")


def table(particles: Sequence[int], rows: Mapping[str, Any]) -> list[str]:
    """Return lines of Markdown."""
    lines = [
        "| K | noise: IWAE | without the score | DReG | squared bias: without the score | DReG |",
        "| --- " * 6 + "|",
    ]
    for place, num_particles in enumerate(particles):
        cells = [f"{row['noise'][place]:.2f}" for row in rows.values()]
        for row in (rows["without the score"], rows["DReG"]):
            value, error = row["squared_bias"][place], row["squared_bias_standard_error"][place]
            cells.append(f"{value:.3f} ± {error:.3f}")
        lines.append(f"| {num_particles} | {' | '.join(cells)} |")
    return lines


def main(scale: ScaleName = "cpu", seed: int = 0, name: str | None = None) -> None:
    """Measure bias and noise; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        for title, row in measure(study.scale).items():
            study.keep(title, row)
        print("\n".join(table(study.scale.particles, study.rows)))
        draw(study)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
