"""A contender in a process of its own: its memory and its compile time are nobody else's.

Both ends of the pipe are here. The process runs epochs when it is told to and sleeps otherwise,
so that blocks of many contenders can be interleaved on the same cores.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from programs import Contender, NotHere, Program

__all__ = ["Block", "Worker", "busy_seconds", "serve"]

_FOLDER = Path(__file__).parent
# A contender that quietly does something else than its name says must not be timed.
_WARNINGS = "ignore,error:running eagerly,error:not compiled"


@dataclass(frozen=True)
class Block:
    """What a worker did in one call.

    Attributes:
        seconds: The time its epochs took, by the clock on the wall.
        processor_seconds: The time all its threads spent on processors.
        loss: The mean loss of the last epoch in nats per datum; NaN if none is known.
        peak_mib: The largest resident memory of the process so far.
    """

    seconds: float
    processor_seconds: float
    loss: float
    peak_mib: float


class Worker:
    """A process that holds one contender of one program.

    Args:
        contender: What it runs.
        program: The program to train.
        threads: How many processors it may use.
        cache: Where compilers keep what they built; an empty folder for a cold start.

    Raises:
        NotHere: If the contender cannot run on this machine, or fails.
    """

    def __init__(self, contender: Contender, program: Program, threads: int, cache: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONWARNINGS": _WARNINGS,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(_FOLDER), os.environ.get("PYTHONPATH")])
            ),
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            "PYRO_VAE_CACHE": str(cache / "pyro_vae"),
            "JAX_PLATFORMS": "cpu",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import worker; worker.serve({threads})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **settings},
        )
        self.baseline_mib: float = self._ask((contender, program))

    def run(self, epochs: int) -> Block:
        """Run so many epochs and return what they took."""
        return self._ask(epochs)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, where: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(question, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            answer = NotHere(self._last_words())
        except BaseException:
            self._process.kill()
            raise
        if isinstance(answer, NotHere):
            self.close()
            raise answer
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {code}: {lines[-1] if lines else 'no message'}"


def busy_seconds() -> float | None:
    """Return the seconds that all processors have been busy; None where that is unknown."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def serve(threads: int) -> None:
    """Be the other end: build what the first question names, then run epochs as they come."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a toolkit prints must not land between the answers
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with ExitStack() as stack:
        for answer in _answers(questions, stack):
            pickle.dump(answer, answers)
            answers.flush()


def _answers(questions: Any, stack: ExitStack) -> Iterator[Any]:
    try:
        epochs = _built(*pickle.load(questions), stack)
        yield _peak_mib()
        while questions.peek(1):
            yield _timed(epochs, pickle.load(questions))
    except NotHere as reason:
        yield reason
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        yield NotHere(f"{type(error).__name__}: {said}")


def _built(contender: Contender, program: Program, stack: ExitStack) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None:  # the contender's module needs it
        torch.manual_seed(0)
    if contender.fast:
        engine = importlib.import_module("pyro_vae.engine")
        if not stack.enter_context(engine.fast_arithmetic()):
            raise NotHere("oneDNN's products are not true float32 on this processor")
    return contender.build(program)


def _timed(epochs: Any, num: int) -> Block:
    start, used = time.perf_counter(), time.process_time()
    loss = epochs(num)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return Block(seconds, used, loss, _peak_mib())


def _peak_mib() -> float:
    """Return the peak of this program alone: ``ru_maxrss`` also remembers its parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
