"""What a part costs: the time and memory of a step with it, as a multiple of the plain one's.

    python experiments/multiples.py --rounds 5
    python experiments/multiples.py --groups priors --fast --name multiples_fast
    python experiments/multiples.py --groups normal --members Refined Reconstruction --here

Each group is one program in which one part changes; its first row is what the others are multiples
of. All are recorded, with float32 products as torch finds them or, with ``--fast``, with the
arithmetic that ``fit`` chooses for larger programs: oneDNN's products where they are true float32,
and numbers below 1e-38 taken for zero. Contenders have processes of their own and are timed as
``speed.py`` does: interleaved blocks, medians over rounds. With ``--here`` all are in one process
of one thread, and processor time is measured: for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import record
import speed
import torch
from programs import Contender, Perceptrons
from variants import GROUPS, Group, trained

__all__ = ["main", "measure", "table"]


def measure(
    group: Group, rounds: int, threads: int, *, fast: bool = False
) -> dict[str, dict[str, Any]]:
    """Time the members of a group in turn; return a row for each, and why one has none."""
    chosen = {
        name: Contender(partial(trained, group.engine, member), (Perceptrons,), fast=fast)
        for name, member in group.members.items()
    }
    timed, left_out = speed.measure(group.program, chosen, rounds, threads)
    plain = timed[next(iter(group.members))]
    rows: dict[str, dict[str, Any]] = {
        name: {
            "median_ms": one.median_ms,
            "quartiles_ms": speed.quartiles(one.times_ms),
            "multiple": one.median_ms / plain.median_ms,
            "peak_mib": one.peak_mib,
            "loss_nats": None if math.isnan(one.loss) else one.loss,
            "num_disturbed": one.num_disturbed,
        }
        for name, one in timed.items()
    }
    return rows | {name: {"left_out": reason} for name, reason in left_out.items()}


def measure_here(group: Group, rounds: int) -> dict[str, dict[str, Any]]:
    """Time the members of a group in turn in this process; return a row for each.

    A multiple is the median over rounds of what an epoch takes over what the plain one's takes.
    """
    torch.set_num_threads(1)
    epochs = {
        name: trained(group.engine, member, group.program) for name, member in group.members.items()
    }
    for run in epochs.values():
        run(1)  # is recorded
    times: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, run in epochs.items():
            start = time.process_time()
            run(1)
            times[name].append((time.process_time() - start) * 1e3 / group.program.num_batches)
    plain = times[next(iter(epochs))]
    return {
        name: {
            "median_ms": statistics.median(each),
            "quartiles_ms": speed.quartiles(each),
            "multiple": statistics.median(a / b for a, b in zip(each, plain, strict=True)),
        }
        for name, each in times.items()
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Return the lines of a group's table."""
    yield "| part | ms a step | multiple | peak MiB |"
    yield "| --- | ---: | ---: | ---: |"
    for name, row in rows.items():
        if "left_out" in row:
            yield f"| {name} | {row['left_out']} | | |"
        else:
            peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
            yield f"| {name} | {row['median_ms']:.2f} | {row['multiple']:.2f} | {peak} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the groups that the command line names; print tables and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="processors of each contender")
    parser.add_argument("--groups", nargs="*", default=[], help="parts of names; all unless given")
    parser.add_argument("--members", nargs="*", default=[], help="likewise, beside the first")
    parser.add_argument("--here", action="store_true", help="processor time, in this process")
    parser.add_argument("--fast", action="store_true", help="with the arithmetic of fit")
    parser.add_argument("--name", default="multiples", help="of the record")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {
        "protocol": " ".join(__doc__[__doc__.index("Each group") :].split()),
        "command": record.command(),
        "rounds": options.rounds,
        "threads_of_each": 1 if options.here else options.threads,
        "clock": "processor time of one process" if options.here else "wall time",
        "groups": {},
    }
    for title, group in speed.named(GROUPS, options.groups).items():
        plain, *others = group.members
        kept = speed.named({name: name for name in others}, options.members)
        group = replace(group, members={n: group.members[n] for n in (plain, *kept)})
        if options.here:
            rows = measure_here(group, options.rounds)
        else:
            rows = measure(group, options.rounds, options.threads, fast=options.fast)
        found["groups"][title] = rows
        print("\n".join(["", title, "", *table(rows)]), flush=True)
        record.write(options.name, found)


if __name__ == "__main__":
    main()
