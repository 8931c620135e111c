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

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import record
import torch
from jsonargparse import auto_cli
from linear_gaussian import LinearGaussian, data, gradients, jackknifed
from matplotlib.figure import Figure
from rainforth2018_tighter import Scale
from torch import Tensor

from pyro_vae.inference import IWAE, DReG, StickingTheLanding

SCALES = {
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


def measure(scale: Scale) -> dict[str, list[dict[str, float]]]:
    """Return squared bias and noise of each gradient for each number of particles."""
    x = data(scale.num_data)
    program = LinearGaussian(x)
    without_score = StickingTheLanding()(program.guide)
    found: dict[str, list[dict[str, float]]] = {"IWAE": [], "without the score": [], "DReG": []}
    for num_particles in scale.particles:
        iwae, landing, dreg = (
            gradients(program, x, objective, scale.num_estimates, guide)["encoder"]
            for objective, guide in (
                (IWAE(num_particles), program.guide),
                (IWAE(num_particles), without_score),
                (DReG(num_particles), program.guide),
            )
        )
        found["IWAE"].append(_with_errors(noise=(relative_noise, iwae, dreg)))
        found["without the score"].append(
            _with_errors(
                noise=(relative_noise, landing, dreg), bias=(squared_bias, landing, dreg, dreg)
            )
        )
        found["DReG"].append(
            _with_errors(noise=(relative_noise, dreg, dreg), bias=(squared_bias, dreg, iwae, dreg))
        )
    return found


def _with_errors(noise: tuple[Any, ...], bias: tuple[Any, ...] | None = None) -> dict[str, float]:
    row = dict(zip(("noise", "noise_standard_error"), _floats(*noise), strict=True))
    if bias is not None:
        names = ("squared_bias", "squared_bias_standard_error")
        row.update(zip(names, _floats(*bias), strict=True))
    return row


def _floats(statistic: Callable[..., Tensor], *samples: Tensor) -> list[float]:
    return [each.item() for each in jackknifed(statistic, *samples)]


def draw(path: Path, particles: Sequence[int], found: Mapping[str, Any]) -> None:
    """Draw squared bias and noise against the particles."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    titles = {"squared_bias": "squared bias", "noise": "noise"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for colour, (name, rows) in zip(("C0", "C1", "C2"), found.items(), strict=True):
            if key in rows[0]:
                errors = [row[f"{key}_standard_error"] for row in rows]
                values = [row[key] for row in rows]
                style = {"fmt": "o-", "ms": 3, "capsize": 2, "color": colour, "label": name}
                axes.errorbar(particles, values, errors, **style)
        axes.set(xscale="log", title=f"{title} of the encoder's gradient")
        axes.set_xlabel("particles, K")
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yscale("symlog", linthresh=0.1)
    figure.axes[0].set_ylabel("over the squared norm of the expected gradient")
    figure.axes[1].set_yscale("log")
    figure.axes[1].set_ylabel("over the norm of the expected gradient")
    figure.savefig(path, dpi=120)


def table(particles: Sequence[int], found: Mapping[str, Any]) -> list[str]:
    """Return lines of Markdown."""
    lines = [
        "| K | noise: IWAE | without the score | DReG | squared bias: without the score | DReG |",
        "| --- " * 6 + "|",
    ]
    for place, num_particles in enumerate(particles):
        rows = {name: each[place] for name, each in found.items()}
        cells = [f"{row['noise']:.2f}" for row in rows.values()] + [
            f"{rows[name]['squared_bias']:.3f} ± {rows[name]['squared_bias_standard_error']:.3f}"
            for name in ("without the score", "DReG")
        ]
        lines.append(f"| {num_particles} | {' | '.join(cells)} |")
    return lines


def main(
    scale: Literal["smoke", "cpu", "paper"] = "cpu", seed: int = 0, name: str = "tucker2019_dreg"
) -> None:
    """Measure bias and noise; print the table, write the record, draw the figure."""
    chosen = SCALES[scale]
    start = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = measure(chosen)
    path = record.write(
        name,
        {
            "protocol": " ".join(__doc__.partition("paper\n\n")[2].split()),
            "command": " ".join(["python", *sys.argv]),
            "scale": {"name": scale, **chosen._asdict()},
            "seed": seed,
            "seconds": time.perf_counter() - start,
            "gradients": found,
        },
    )
    draw(path.with_suffix(".png"), chosen.particles, found)
    print("\n".join(table(chosen.particles, found)))
    print(path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
