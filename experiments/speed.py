"""How fast is a step, beside plain Pyro, PyTorch by hand, other toolkits and the products alone?

    python experiments/speed.py --rounds 15
    python experiments/speed.py --curves --rounds 5
    python experiments/speed.py --epoch --data_root FOLDER

Every contender of a program has a process of its own on the same processors; they are visited in
random order in every round, and one runs at a time. A block is as many epochs, of 8 to 40 batches,
as take about 0.3 seconds; a block beside which something else kept 0.15 processors busy is taken
again, up to three times. Medians and quartiles over rounds; ratios are ratios of medians.

The floor is the step's products alone, forward and backward, on the same shapes. Compile seconds
are those of the first epoch with empty caches, less those of a later one; "again" is the same in a
second process that finds the first one's cache, for what Inductor compiles. After the break-even
steps the first number is repaid by what a step saves against the same contender uncompiled. Memory
is the peak of the contender's own process, without compilers that it calls; the loss is that of the
fifth epoch. The best peer is the fastest of NumPyro, pythae and pixyz. "Fast" rows take oneDNN's
products, where they are true float32, take numbers below 1e-38 for zero, and keep freed memory.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import contenders
import epoch
import peers
import record
import speed_plot
from programs import PROGRAMS, Contender, Ladder, NotHere, Program
from worker import Worker, busy_seconds

__all__ = [
    "CONTENDERS",
    "Timed",
    "curves",
    "main",
    "measure",
    "named",
    "quartiles",
    "rows",
    "table",
]

CONTENDERS: dict[str, Contender] = {**contenders.CONTENDERS, **peers.CONTENDERS}
PYRO, FLOOR = "Pyro's SVI.step", "products alone"

_MLP = PROGRAMS["MNIST, MLP 784-400-20, batch 128"]
_IWAE = PROGRAMS["MNIST, IWAE 784-200-200-50, 50 particles, batch 20"]
_LADDER = Ladder(28, (256,), 32, 128)
_CURVES: dict[str, tuple[str, dict[int, Program]]] = {
    "batch": ("MLP 784-400-20", {n: replace(_MLP, batch=n) for n in (32, 128, 512, 1024, 4096)}),
    "particles": (
        "IWAE 784-200-200-50, batch 20",
        {n: replace(_IWAE, particles=n) for n in (1, 10, 50, 200, 1000)},
    ),
    "latents": (
        "MLP 784-400-n, batch 128",
        {n: replace(_MLP, latents=n) for n in (2, 8, 32, 128, 512)},
    ),
    "layers": (
        "ladder of n x 32 latents, batch 128",
        {n: replace(_LADDER, layers=(32,) * n) for n in (1, 2, 4, 8)},
    ),
}
_OF_CURVES = (PYRO, "pyro_vae, recorded", "pyro_vae, compiled", FLOOR)

_BLOCK_SECONDS, _PAUSE_SECONDS = 0.3, 0.02
_LATER_EPOCHS = 4
_FOREIGN_PROCESSORS, _ATTEMPTS = 0.15, 4
_WORTH_A_SECOND_START = 1.0  # seconds


# ---------------------------------------------------------------------------- measuring


@dataclass
class Timed:
    """What was measured of one contender.

    Attributes:
        compile_seconds: What the first epoch took longer than a later one.
        compile_seconds_again: The same in a second process; None where there is no cache to find.
        loss: The mean loss of the fifth epoch in nats per datum; NaN if none is known.
        baseline_mib: Peak memory before the first step.
        peak_mib: Peak memory at the end.
        times_ms: Milliseconds a step, one number a round.
        num_disturbed: How many of them something else on the machine may have slowed down.
    """

    compile_seconds: float
    compile_seconds_again: float | None
    loss: float
    baseline_mib: float
    peak_mib: float
    times_ms: list[float] = field(default_factory=list)
    num_disturbed: int = 0

    @property
    def median_ms(self) -> float:
        """The median of the times."""
        return statistics.median(self.times_ms)


class _Runner:
    """A worker, how many epochs its blocks have, and what was measured of it."""

    def __init__(self, contender: Contender, program: Program, threads: int) -> None:
        self._steps = program.num_batches
        with tempfile.TemporaryDirectory() as cache:
            self.worker = Worker(contender, program, threads, Path(cache))
            first, later = self.worker.run(1), self.worker.run(_LATER_EPOCHS)
            epoch_seconds = later.seconds / _LATER_EPOCHS
            cold, again = max(0.0, first.seconds - epoch_seconds), None
            if contender.uncompiled is not None and cold > _WORTH_A_SECOND_START:
                with Worker(contender, program, threads, Path(cache)) as second:
                    again = max(0.0, second.run(1).seconds - epoch_seconds)
        self.timed = Timed(cold, again, later.loss, self.worker.baseline_mib, later.peak_mib)
        self._epochs = max(1, round(_BLOCK_SECONDS / epoch_seconds))

    def block(self) -> None:
        """Take one more time; take it again if something else was at work."""
        for _ in range(_ATTEMPTS):
            time.sleep(_PAUSE_SECONDS)  # the threads of the one before stop spinning
            before = busy_seconds()
            done = self.worker.run(self._epochs)
            after = busy_seconds()
            foreign = 0.0
            if before is not None and after is not None:
                foreign = (after - before - done.processor_seconds) / done.seconds
            if foreign < _FOREIGN_PROCESSORS:
                break
        else:
            self.timed.num_disturbed += 1
        self.timed.times_ms.append(done.seconds / (self._epochs * self._steps) * 1000)
        self.timed.peak_mib = done.peak_mib


def measure(
    program: Program, chosen: Mapping[str, Contender], rounds: int, threads: int
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Time contenders of one program in turn; also return why some were left out."""
    runners: dict[str, _Runner] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        for name, contender in chosen.items():
            try:
                runners[name] = _Runner(contender, program, threads)
                stack.callback(runners[name].worker.close)
            except NotHere as reason:
                left_out[name] = str(reason)
        for _ in range(rounds):
            for name in random.sample(list(runners), len(runners)):
                runners[name].block()
    return {name: runner.timed for name, runner in runners.items()}, left_out


def curves(
    rounds: int, threads: int, axes: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time a step, and take its memory, against the sizes of a program; yield each axis."""
    chosen = {name: CONTENDERS[name] for name in _OF_CURVES}
    for axis, curve in named({"data": None, **_CURVES}, axes).items():
        if curve is None:
            yield axis, epoch.curve(threads)
            continue
        title, programs = curve
        lines: dict[str, Any] = {name: {"size": [], "ms": [], "peak_mib": []} for name in chosen}
        for size, program in programs.items():
            _say(f"{axis} {size}")
            timed, _ = measure(program, chosen, rounds, threads)
            for name, one in timed.items():
                lines[name]["size"].append(size)
                lines[name]["ms"].append(one.median_ms)
                lines[name]["peak_mib"].append(one.peak_mib)
        yield axis, {"program": title, "contenders": lines}


# ---------------------------------------------------------------------------- what is told


def rows(timed: Mapping[str, Timed], chosen: Mapping[str, Contender]) -> dict[str, dict[str, Any]]:
    """Return each contender's row of the table: what was measured, and the ratios."""
    median = {name: one.median_ms for name, one in timed.items()}
    best_peer = min((median[name] for name in peers.CONTENDERS if name in median), default=None)
    floor = min((ms for name, ms in median.items() if name.startswith(FLOOR)), default=None)
    return {
        name: {
            "median_ms": median[name],
            "quartiles_ms": quartiles(one.times_ms),
            "times_pyro": _ratio(median.get(PYRO), median[name]),
            "times_best_peer": _ratio(best_peer, median[name]),
            "over_floor": _ratio(median[name], floor),
            "compile_seconds": one.compile_seconds,
            "compile_seconds_again": one.compile_seconds_again,
            "break_even_steps": _break_even(one, timed.get(chosen[name].uncompiled or "")),
            "peak_mib": one.peak_mib,
            "baseline_mib": one.baseline_mib,
            "loss_nats": None if math.isnan(one.loss) else one.loss,
            "num_disturbed": one.num_disturbed,
        }
        for name, one in timed.items()
    }


def table(measured: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Return the lines of a table of rows."""
    heads = "ms a step,quartiles,times Pyro,times best peer,over floor,compile s,again,break-even"
    heads = [*heads.split(","), "peak MiB", "loss"]
    yield f"| contender | {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * len(heads)
    for name, row in measured.items():
        low, high = row["quartiles_ms"]
        cells = [
            f"{row['median_ms']:.3f}",
            f"{low:.3f} - {high:.3f}",
            *(_cell(row[key], ".2f") for key in ("times_pyro", "times_best_peer", "over_floor")),
            _cell(row["compile_seconds"], ".1f"),
            _cell(row["compile_seconds_again"], ".1f"),
            _cell(row["break_even_steps"], ".0f"),
            _cell(row["peak_mib"], ".0f"),
            _cell(row["loss_nats"], ".1f"),
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _break_even(one: Timed, uncompiled: Timed | None) -> float | None:
    if uncompiled is None or one.median_ms >= uncompiled.median_ms:
        return None
    cost = max(0.0, one.compile_seconds - uncompiled.compile_seconds)
    return cost / (uncompiled.median_ms - one.median_ms) * 1000


def _versions() -> dict[str, str]:
    found = {}
    for package in ("jax", "numpyro", "pythae", "pixyz"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for; print the table, write the record, draw the plot."""
    options = _options().parse_args(arguments)
    if options.axes and not options.curves:
        raise SystemExit(f"--axes {' '.join(options.axes)}: these are of --curves; give that, too")
    about = {
        "protocol": " ".join(__doc__.partition("FOLDER\n\n")[2].split()),
        "command": record.command(),
        "rounds": options.rounds,
        "threads_of_each": options.threads,
        "peers": _versions(),
    }
    if options.epoch:
        found = epoch.measure(options.data_root, options.rounds, options.threads)
        about["protocol"] = " ".join(epoch.__doc__.split())
        print("\n".join(epoch.table(found)))
        print(record.write(options.name or "speed_epoch", {**about, "contenders": found}))
        return
    if options.curves:
        lines: dict[str, Any] = {}
        for axis, line in curves(options.rounds, options.threads, options.axes):
            lines[axis] = line
            path = _keep({**about, "programs": {}, "curves": lines}, options.name or "speed_curves")
        print(path)
        return
    results: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    found = {**about, "programs": results, "left_out": left_out, "curves": {}}
    for title, program in named(PROGRAMS, options.programs).items():
        runs = {name: c for name, c in CONTENDERS.items() if c.runs(program)}
        chosen = named(runs, options.contenders)
        _say(title)
        timed, missing = measure(program, chosen, options.rounds, options.threads)
        results[title] = rows(timed, chosen)
        left_out.update(missing)
        print("\n".join(["", title, "", *table(results[title])]), flush=True)
        path = _keep(found, options.name or "speed")  # what is measured is kept if the rest is not
    for name, reason in left_out.items():
        print(f"\nleft out: {name}: {reason}")
    print(f"\n{path}")


def _keep(found: dict[str, Any], name: str) -> Path:
    path = record.write(name, found)
    speed_plot.draw(path.with_suffix(".png"), found["programs"], found["curves"])
    return path


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="processors of each contender")
    parser.add_argument(
        "--programs", nargs="*", default=[], help="parts of names; all unless given"
    )
    parser.add_argument("--contenders", nargs="*", default=[], help="parts of names")
    parser.add_argument("--curves", action="store_true", help="a step against its sizes instead")
    parser.add_argument("--axes", nargs="*", default=[], help="parts of the curves' names")
    parser.add_argument("--epoch", action="store_true", help="an epoch of MNIST, end to end")
    parser.add_argument("--data_root", type=Path, help="where MNIST lies, for --epoch")
    parser.add_argument("--name", help="of the record; a full path to write elsewhere")
    return parser


def named(members: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    chosen = {n: m for n, m in members.items() if not parts or any(part in n for part in parts)}
    if not chosen:
        raise SystemExit(f"no name has any of {', '.join(parts)}; there are: {'; '.join(members)}")
    return chosen


if __name__ == "__main__":
    main()
