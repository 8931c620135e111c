"""What holds and how fast is it on a GPU? Checks first, then the time of a step.

    python experiments/gpu.py --minutes 9

The checks run the digits' program: 20 steps of each engine from one seed (losses and the random
state afterwards, beside the eager ones), whether a step makes the host wait (torch's debug mode for
synchronisation), how much memory 300 further steps take, and whether a run of ``fit`` that stopped
after one of two epochs goes on to the weights of one that did not.

Then contenders of a program take epochs in turns, in one process; medians over rounds, with the
device synchronised before the clock is read. "CUDA graph" is the step's operations, captured once
and replayed: of the bound written by hand with Adam, and of our recording. Programs are measured
until the minutes are over. With ``--device cpu`` all but the graphs runs on a processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import record
import torch
from programs import PROGRAMS, Epochs, Program
from torch import Tensor

from pyro_vae import SVI, fit
from pyro_vae.engine import Callback, TrainingError

__all__ = ["checks", "main", "measure"]

_TITLES = (
    "digits, MLP 64-128-20, batch 64",
    "MNIST, MLP 784-400-20, batch 128",
    "MNIST, MLP 784-400-20, batch 1024",
    "MNIST, IWAE 784-200-200-50, 50 particles, batch 20",
)
_ENGINES = ("eager", "recorded", "compiled")
_STEPS, _LATER_STEPS = 20, 300
_adam = partial(torch.optim.Adam, lr=1e-3)


# --------------------------------------------------------------------------------------- the checks


def checks(program: Program, device: torch.device) -> dict[str, Any]:
    """Return for each engine what the checks found."""
    with device:
        found = {engine: _of_engine(engine, program, device) for engine in _ENGINES}
    expected, state = found["eager"]["losses"], found["eager"]["random_state"]
    for row in found.values():
        losses = zip(row["losses"], expected, strict=True)
        row["largest_relative_difference"] = max(abs(a - b) / abs(b) for a, b in losses)
        row["same_random_state"] = row.pop("random_state") == state
    return {**found, "resumes_to_the_same_bits": _resumes(program, device)}


def _of_engine(engine: str, program: Program, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    module = contenders.vae(program)
    svi = SVI(
        module.model, module.guide, _adam, contenders.objective(program),
        engine=engine, guarded=True,
    )  # fmt: skip
    batches = contenders.images(program)
    torch.manual_seed(1)
    losses = [float(svi.update(batches[i % len(batches)])) for i in range(_STEPS)]
    generator = torch.cuda if device.type == "cuda" else torch
    state = generator.get_rng_state().tolist()
    before = _memory(device)
    waits = _waits(lambda: svi.update(batches[0]), device)
    for i in range(_LATER_STEPS):
        svi.update(batches[i % len(batches)])
    return {
        "losses": losses, "random_state": state, "recorded": svi.recorded, "waits": waits,
        "bytes_of_later_steps": _memory(device) - before,
    }  # fmt: skip


def _waits(step: Callable[[], Any], device: torch.device) -> str:
    """Say where a step makes the host wait for the device; empty if nowhere."""
    if device.type != "cuda":
        return ""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def _memory(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


class _Stops(Callback):
    """Ends a run after its first epoch, as a fault would."""

    def epoch(self, run: Any, numbers: dict[str, Any]) -> None:
        raise TrainingError("stopped after an epoch")


def _resumes(program: Program, device: torch.device) -> bool:
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for number, stops in enumerate((False, True)):
            out = Path(folder) / str(number)
            options: dict[str, Any] = {"epochs": 2, "out": out, "device": device, "progress": False}
            x = torch.cat(contenders.images(program))
            if stops:
                try:
                    _fitted(program, x, callbacks=[_Stops()], **options)
                except TrainingError:
                    options["resume"] = True
            ends.append(_fitted(program, x, **options))
    return all(map(torch.equal, *ends))


def _fitted(program: Program, x: Tensor, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    module = contenders.vae(program)
    fit(module, x, batch_size=program.batch, engine="recorded", **options)
    return [value.detach().cpu() for value in module.state_dict().values()]


# --------------------------------------------------------------------------------------- the times


def measure(program: Program, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of a step of each contender, or why it could not run."""
    contending, found = {}, {}
    for name, build in _contenders(device).items():
        began = time.perf_counter()
        try:
            contending[name] = build(program)
            contending[name](1)
        except Exception as error:  # whatever a compiler or a capture may say
            contending.pop(name, None)
            found[name] = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
            continue
        found[name] = {"first_epoch_seconds": time.perf_counter() - began, "ms": []}
    for _ in range(rounds):
        for name, epochs in contending.items():
            _synchronize(device)
            began = time.perf_counter()
            epochs(1)
            _synchronize(device)
            seconds = time.perf_counter() - began
            found[name]["ms"].append(1000 * seconds / program.num_batches)
    for name in contending:
        found[name]["median_ms"] = statistics.median(found[name]["ms"])
    return found


def _contenders(device: torch.device) -> dict[str, Callable[[Program], Epochs]]:
    chosen = (
        "Pyro's SVI.step", "by hand", "by hand, loss compiled", "by hand, step compiled",
        "pyro_vae, eager", "pyro_vae, recorded", "pyro_vae, compiled",
    )  # fmt: skip
    found: dict[str, Any] = {name: contenders.CONTENDERS[name].build for name in chosen}
    if device.type == "cuda":
        found["by hand, CUDA graph"] = _by_hand_captured
        found["pyro_vae, recording in a CUDA graph"] = _recording_captured
    return found


def _by_hand_captured(program: Program) -> Epochs:
    step = contenders.whole_step(contenders.bound_of(program))
    batches = [rows.flatten(1) for rows in contenders.images(program)]
    return contenders.in_turn(_captured(step, batches[0].clone()), batches, program)


def _recording_captured(program: Program) -> Epochs:
    module, batches = contenders.vae(program), contenders.images(program)
    svi = SVI(module.model, module.guide, _adam, contenders.objective(program), engine="recorded")
    svi.update(batches[0])
    return contenders.in_turn(_captured(svi.update, batches[0].clone()), batches, program)


def _captured(step: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a step that copies its batch to ``x`` and replays what was captured on it."""
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step(x)

    def replay(batch: Tensor) -> Tensor:
        x.copy_(batch)
        graph.replay()
        return loss.clone()

    return replay


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure until the minutes are over, and write the record after each program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--programs", nargs="*", default=[], help="parts of names")
    parser.add_argument("--name", default="gpu", help="of the record; a full path elsewhere")
    options = parser.parse_args(arguments)
    device, end = torch.device(options.device), time.monotonic() + 60 * options.minutes
    titles = [t for t in _TITLES if not options.programs or any(p in t for p in options.programs)]
    found: dict[str, Any] = {"command": record.command(), "rounds": options.rounds}
    found["checks"] = checks(PROGRAMS[_TITLES[0]], device)
    found["programs"] = {}
    for title in titles:
        if time.monotonic() < end:
            with device:
                found["programs"][title] = measure(PROGRAMS[title], device, options.rounds)
            _say(title, found["programs"][title])
        print(record.write(options.name, found))


def _say(title: str, rows: dict[str, Any]) -> None:
    print(f"\n{title}\n\n| contender | ms a step | first epoch, s |\n| --- | ---: | ---: |")
    for name, row in rows.items():
        if "failed" in row:
            print(f"| {name} | {row['failed']} | |")
        else:
            print(f"| {name} | {row['median_ms']:.3f} | {row['first_epoch_seconds']:.1f} |")


if __name__ == "__main__":
    main()
