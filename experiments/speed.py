"""How fast is a step, beside plain Pyro, hand-written PyTorch and the arithmetic alone?

    python experiments/speed.py --rounds 15

All contenders of a program live in one process and are visited in random order in every round;
a block is as many steps as take about a quarter of a second. Medians and quartiles over rounds.
The floor is the step's matrix products alone, forward and backward, on the same shapes. "Fast
arithmetic" takes oneDNN's float32 products where they are true float32; that the C library keeps
freed memory then holds for all contenders of the process.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import record
import torch
from jsonargparse import auto_cli
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import SVI, VAE
from pyro_vae.components import MLP
from pyro_vae.engine import fast_arithmetic
from pyro_vae.inference import ELBO, IWAE, Objective

Step = Callable[[], Any]
_BLOCK_SECONDS = 0.25


class Shape:
    """A VAE on binary data: the sizes that all contenders share."""

    def __init__(
        self, side: int, hidden: tuple[int, ...], latent: int, batch: int, particles: int = 1
    ) -> None:
        self.side, self.hidden, self.latent = side, hidden, latent
        self.batch, self.particles = batch, particles
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(batch, 1, side, side, generator=generator)
        self.x = (pixels < 0.2).float()

    def vae(self) -> VAE:
        """Build our VAE of these sizes."""
        torch.manual_seed(0)
        network = partial(MLP, hidden=self.hidden, activation=nn.Tanh)
        return VAE.assemble((1, self.side, self.side), (self.latent,), network=network)

    def networks(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Build encoder and decoder of these sizes in plain PyTorch."""
        torch.manual_seed(0)
        pixels = self.side**2
        return (
            _layers([pixels, *self.hidden, 2 * self.latent]),
            _layers([self.latent, *self.hidden, pixels]),
        )


PROGRAMS = {
    "digits, MLP 64-128-20, batch 64": Shape(8, (128,), 20, 64),
    "MNIST, MLP 784-400-20, batch 128": Shape(28, (400,), 20, 128),
    "MNIST, MLP 784-400-20, batch 1024": Shape(28, (400,), 20, 1024),
    "MNIST, IWAE 784-200-200-50, 50 particles, batch 20": Shape(28, (200, 200), 50, 20, 50),
}


def pyro_svi(shape: Shape) -> Step:
    """Step ``pyro.infer.SVI`` with ``pyro.optim.Adam`` on tensors, as a Pyro script does."""
    vae = shape.vae()

    def model(x: Tensor) -> None:
        pyro.module("vae", vae)
        vae.model(x)

    if shape.particles > 1:
        loss: Any = RenyiELBO(
            0, num_particles=shape.particles, vectorize_particles=True, max_plate_nesting=1
        )
    else:
        loss = Trace_ELBO()
    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    return lambda: svi.step(shape.x)


def ours(engine: str, shape: Shape) -> Step:
    """Step our SVI with a fused Adam at one of its engines."""
    vae = shape.vae()
    objective: Objective = IWAE(shape.particles) if shape.particles > 1 else ELBO()
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    svi = SVI(vae.model, vae.guide, adam, objective, engine=engine)
    return lambda: svi.step(shape.x)


def by_hand(compiled: bool, shape: Shape) -> Step:
    """Step the same bound, written in PyTorch without distributions, with a fused Adam."""
    encoder, decoder = shape.networks()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def loss(x: Tensor) -> Tensor:
        loc, log_scale = encoder(x.flatten(1)).chunk(2, -1)
        noise = torch.randn(shape.particles, *loc.shape)
        z = loc + log_scale.exp() * noise
        log_q = (-0.5 * noise**2 - log_scale).sum(-1)
        log_p = (-0.5 * z**2).sum(-1)
        logits = decoder(z)
        target = x.flatten(1).expand_as(logits)
        log_x = -functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return -(log_x.sum(-1) + log_p - log_q).logsumexp(0).sum()

    function = torch.compile(loss, dynamic=False) if compiled else loss

    def step() -> float:
        value = function(shape.x)
        value.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return value.item()

    return step


def floor(shape: Shape) -> Step:
    """Multiply the step's matrices: forward, and backward to weights and activations."""
    encoder, decoder = shape.networks()
    jobs = []
    for network, rows, first in (
        (encoder, shape.batch, True),
        (decoder, shape.batch * shape.particles, False),
    ):
        for layer in network:
            if isinstance(layer, nn.Linear):
                a, b = torch.randn(rows, layer.in_features), torch.randn(rows, layer.out_features)
                jobs.append((a, b, layer.weight.detach(), not first))
                first = False

    def step() -> None:
        for a, b, weight, needs_input_gradient in jobs:
            a @ weight.T
            b.T @ a
            if needs_input_gradient:
                b @ weight

    return step


CONTENDERS: dict[str, tuple[Callable[[Shape], Step], bool]] = {
    "Pyro's SVI.step": (pyro_svi, False),
    "by hand": (partial(by_hand, False), False),
    "by hand, compiled": (partial(by_hand, True), False),
    "pyro_vae, eager": (partial(ours, "eager"), False),
    "pyro_vae, recorded": (partial(ours, "recorded"), False),
    "pyro_vae, compiled": (partial(ours, "compiled"), False),
    "by hand, compiled, fast arithmetic": (partial(by_hand, True), True),
    "pyro_vae, recorded, fast arithmetic": (partial(ours, "recorded"), True),
    "pyro_vae, compiled, fast arithmetic": (partial(ours, "compiled"), True),
    "products alone": (floor, False),
    "products alone, fast arithmetic": (floor, True),
}


def main(rounds: int = 15, threads: int = 2, name: str = "speed") -> None:
    """Measure all contenders on all programs; print the table and write the record."""
    torch.set_num_threads(threads)
    results = {program: _measured(shape, rounds) for program, shape in PROGRAMS.items()}
    path = record.write(
        name,
        {
            "protocol": __doc__.strip().partition("\n\n")[2],
            "command": " ".join(["python", *sys.argv]),
            "rounds": rounds,
            "programs": results,
        },
    )
    for program, rows in results.items():
        print(f"\n{program}\n\n| contender | ms a step | quartiles | times Pyro's speed |")
        print("| --- | ---: | ---: | ---: |")
        for contender, row in rows.items():
            low, high = row["quartiles_ms"]
            print(
                f"| {contender} | {row['median_ms']:.2f} | {low:.2f} - {high:.2f} "
                f"| {row['times_pyro']:.2f} |"
            )
    print(f"\n{path}")


def _measured(shape: Shape, rounds: int) -> dict[str, dict[str, Any]]:
    torch._dynamo.reset()  # its limit of recompilations is per function, not per program
    steps: dict[str, Step] = {}
    warm_up: dict[str, float] = {}
    for contender, (build, fast) in CONTENDERS.items():
        start = time.perf_counter()
        steps[contender] = build(shape)
        _milliseconds(steps[contender], 5, fast=fast)
        warm_up[contender] = time.perf_counter() - start
    sizes = {
        name: _steps_in_a_block(step, fast=CONTENDERS[name][1]) for name, step in steps.items()
    }
    times: dict[str, list[float]] = {contender: [] for contender in steps}
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            fast = CONTENDERS[name][1]
            times[name].append(_milliseconds(steps[name], sizes[name], fast=fast))
    pyro_ms = statistics.median(times["Pyro's SVI.step"])
    return {
        contender: {
            "median_ms": statistics.median(values),
            "quartiles_ms": statistics.quantiles(values, n=4)[::2],
            "times_pyro": pyro_ms / statistics.median(values),
            "first_five_steps_seconds": warm_up[contender],
        }
        for contender, values in times.items()
    }


def _steps_in_a_block(step: Step, *, fast: bool) -> int:
    once = min(_milliseconds(step, 3, fast=fast) for _ in range(3)) / 1000
    return max(3, round(_BLOCK_SECONDS / once))


def _milliseconds(step: Step, times: int, *, fast: bool) -> float:
    with fast_arithmetic() if fast else nullcontext():
        start = time.perf_counter()
        for _ in range(times):
            step()
        return (time.perf_counter() - start) / times * 1000


def _layers(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
