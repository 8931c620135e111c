"""The command line: train, ask a trained run of data, refit, finetune, compare, list."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from pyro_vae.cli.option_messages import in_options
from pyro_vae.signals import Interrupted, Stop, answered, owning_process
from pyro_vae.terminal import occupy_descriptors, printing
from pyro_vae.wording import on_the_command_line

__all__ = ["main"]

_COMMANDS = {
    "train": ("train.train", "train a program on data, evaluate it and write a report"),
    "evaluate": ("trained.evaluate", "evaluate a trained run again"),
    "sample": ("trained.sample", "draw from the prior of a trained run"),
    "encode": ("new_data.encode", "write the latents of each row of a file"),
    "reconstruct": ("new_data.reconstruct", "write each row as it is seen through its latents"),
    "score": ("new_data.score", "write log p(x) of each row, and show the least likely"),
    "impute": ("new_data.impute", "write a table with its missing cells filled"),
    "plot": ("trained.plot", "draw a trained run's pictures again"),
    "refit": ("refit.refit", "replace a trained run's prior and train the new one alone"),
    "finetune": ("finetune.finetune", "let a trained run's encoder go on as a classifier"),
    "compare": ("compare.compare", "compare objectives: their gradients, and what they train to"),
    "list": ("listing.list_components", "list every component by name, with one line each"),
}
_WORKING = _COMMANDS.keys() - {"list"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    A user's mistake is one line and gives 2; a run that diverged, whose results are
    written, gives 3; SIGINT gives 130, SIGTERM 143 and SIGHUP 129.
    Set ``PYRO_VAE_DEBUG=1`` to see where in the code an error arose.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    occupy_descriptors()
    with printing() as (out, _), owning_process(), on_the_command_line():
        was_closed = out.gone
        status = _answered(words)
        out.flush()
    # A command that works goes on without its reader (`| head`); one that only prints has failed.
    left = out.gone and not was_closed and not _WORKING & {*words[:1]}
    return status or int(left)


def _answered(arguments: list[str]) -> int:
    stop = Stop()
    try:
        with answered(at_once=True) as stop:
            return _dispatch(arguments)
    except (KeyboardInterrupt, Exception) as error:
        if os.environ.get("PYRO_VAE_DEBUG"):
            raise
        if stop.signum and not isinstance(error, KeyboardInterrupt):
            # An import that is interrupted ends in whatever the library makes of it.
            return _status(Interrupted(stop.signum))
        return _status(error, arguments)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"pyro-vae {version('pyro-vae')}")
        return 0
    if arguments[0] not in _COMMANDS:
        return _fail(f"there is no command {arguments[0]!r}: choose from {', '.join(_COMMANDS)}", 2)
    return _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    module, _, function = _COMMANDS[command][0].partition(".")
    if sys.flags.optimize:
        print("pyro-vae: warning: python -O turns all checks of values off", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            run = getattr(importlib.import_module(f"pyro_vae.cli.{module}"), function)
            status = run(arguments)
        except SystemExit as end:  # the parser's, after --help and --print_config
            return int(end.code or 0)
    return status or 0


def _status(error: BaseException, arguments: Sequence[str] = ()) -> int:
    """Tell an error in one line and return the exit status that belongs to it."""
    if isinstance(error, KeyboardInterrupt):
        return _fail(str(error) or "interrupted", 128 + getattr(error, "signum", 2))
    if _is_out_of_memory(error):
        return _fail(f"out of memory: lower --batch-size or --latent ({_cut(error)})", 2)
    if isinstance(error, (ValueError, OSError)) or _is_of_the_door(error):
        return _fail(in_options(str(error), arguments) or type(error).__name__, 2)
    hint = "this is a bug in pyro_vae or in the program; PYRO_VAE_DEBUG=1 shows where"
    return _fail(f"{type(error).__name__}: {error} ({hint})", 1)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises a plain RuntimeError where the host has no memory left.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def _is_of_the_door(error: BaseException) -> bool:
    """Whether an argument was refused for its kind, before anything ran."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__") == "pyro_vae.arguments" if frames else False


def _cut(error: BaseException) -> str:
    return str(error).partition("\n")[0][:160] or type(error).__name__


def _fail(message: str, status: int) -> int:
    print(f"pyro-vae: {' '.join(message.split())}", file=sys.stderr)
    return status


def _show_warning(message: Any, *rest: Any, **options: Any) -> None:
    print(f"pyro-vae: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _overview() -> str:
    lines = [f"  {name:<13}{line}" for name, (_, line) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: pyro-vae COMMAND [options]",
            "",
            "Train, evaluate and compare variational autoencoders written as Pyro programs.",
            "",
            *lines,
            "",
            "pyro-vae COMMAND --help shows a command's options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
