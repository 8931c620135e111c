"""The command ``compare``: objectives as words, the laboratory, and what it writes."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from jsonargparse import Namespace
from pyro.infer import ELBO

from pyro_vae.cli import data_weights, part_help, parts, runs, stored
from pyro_vae.cli.lists import as_list, with_lists, words_of
from pyro_vae.cli.parser import (
    Parser,
    _add_data,
    _add_program,
    check_ranges,
    command_parser,
    hide_what_is_long,
)
from pyro_vae.cli.reading import loaded
from pyro_vae.cli.settled import default_arguments
from pyro_vae.cli.words import taken_option
from pyro_vae.engine.run_folder import new_run_folder, unused_folder
from pyro_vae.files import expanded, remove, replace_file, sync_folder, temporary_for
from pyro_vae.laboratory import Comparison
from pyro_vae.laboratory.comparison import compare as compare_objectives
from pyro_vae.report import page, plots
from pyro_vae.report.comparison import compared

__all__ = ["compare", "comparison_parser", "with_objectives"]

_DEFAULT = "ELBO AnalyticELBO IWAE(8) DReG(8) Renyi(0.5,8) RWS(8)"
_OPTION = "--objectives"


def compare(arguments: list[str]) -> None:
    """Compare objectives on the same data, from the same weights."""
    if (about := part_help.asked(arguments)) is not None:
        print(part_help.told(*about, arguments))
        return
    arguments, named = taken_option(arguments, "--out")
    arguments, modules = parts.with_loaded_files(with_lists(with_objectives(arguments)))
    arguments = stored.with_checked(arguments, modules)
    parser = comparison_parser()
    config = parser.parse_args(arguments)
    check_ranges(config)
    if not config.objectives:
        raise ValueError(f"{_OPTION}: the list is empty; name at least one, such as ELBO IWAE")
    data = loaded(config.data, config)
    settled = default_arguments(parser, arguments, data)
    config = parser.parse_args([*arguments, *settled])
    data_weights.absolute(config)
    text = parser.dump(_without(config, "config", "out"))
    instances = parser.build(config)
    instances.objective = None
    run = runs.open_run(config, instances, data_weights.with_weights(config, data))
    out = expanded(named or config.out or unused_folder(f"compare-{Path(data.name).stem}"))
    with new_run_folder(out, kept_on=()):
        print(f"comparing {len(config.objectives)} objectives on {data.name}", file=sys.stderr)
        found = _compared(run, instances.objectives)
        with _put_in_place_together(out) as place:
            _tell(run, found, place, text)
        print(f"\nreport: {out / 'report.html'}")


def comparison_parser() -> Parser:
    """Return the parser of ``pyro-vae compare``."""
    parser = command_parser(
        "compare",
        "Compare objectives: the bias, noise and cost of their gradients, and what they train to.",
        usage="pyro-vae compare [options]",
        epilog="--objectives ELBO IWAE 'DReG(num_particles=16)' names objectives with arguments; "
        "'pyro-vae list' shows them all. Your own is an import path or a file, my_file.py:MyBound.",
    )
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    _add_data(parser.add_argument_group("data"))
    _add_program(parser.add_argument_group("program"))
    _add_comparison(parser.add_argument_group("comparison"))
    hide_what_is_long(parser)
    return parser


def _add_comparison(group: Any) -> None:
    add = group.add_argument
    default = json.loads(as_list(_OPTION, "objective", words_of(_DEFAULT)))
    add(_OPTION, type=list[ELBO], default=default,
        metavar="NAME ...", help=f"objectives to compare (default: {_DEFAULT})")  # fmt: skip
    add("--epochs", type=int, default=20, help="passes over the data for each objective")
    add(
        "--warm-up-epochs",
        type=int,
        default=3,
        help="epochs of the ELBO before gradients are measured",
    )
    add(
        "--batch-size",
        type=int | None,
        help="data per step (default: 128, or all of them if fewer)",
    )
    add("--lr", type=float, default=1e-3, help="Adam's learning rate, which is constant")
    add("--clip-norm", type=float | None, help="largest norm of the gradient of the loss per datum")
    add("--num-rows", type=int, default=64, help="number of data on which gradients are measured")
    add("--num-repeats", type=int, default=200, help="number of draws of each gradient")
    add("--num-samples", type=int, default=200, help="importance samples per datum for log p(x)")
    engines = Literal["auto", "eager", "recorded", "compiled"]
    add(
        "--engine",
        type=engines,
        default="auto",
        help="run steps eagerly, recorded or compiled, as in train",
    )
    add("--device", default="auto", help="auto (CUDA, MPS, CPU), cpu, cuda, cuda:1, mps")
    add("--seed", type=int, default=0, help="seed for weights, noise and data order")
    add("--out", type=Path | None, help="output folder (default: runs/compare-DATA-TIME)")


def with_objectives(arguments: list[str]) -> list[str]:
    """Replace the words after ``--objectives`` by one list that the parser reads.

    Args:
        arguments: The command line. Words may be parted by commas or blanks, with arguments in
            parentheses, or dictionaries of class_path and init_args, in brackets or not.

    Raises:
        ValueError: If one is no objective, or takes no such argument; suggests the nearest name.
    """
    result: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word.partition("=")[0] != _OPTION:
            result.append(word)
            continue
        given = [word.partition("=")[2]] if "=" in word else []
        while words and not words[0].startswith("--"):
            given.append(words.pop(0))
        result += [_OPTION, as_list(_OPTION, "objective", words_of(" ".join(given)))]
    return result


def _without(config: Namespace, *names: str) -> Namespace:
    kept = config.clone()
    for name in names:
        kept.pop(name, None)
    return kept


@contextlib.contextmanager
def _put_in_place_together(out: Path) -> Iterator[Path]:
    """Give a folder to write to, whose files appear in ``out`` once all are there."""
    place = temporary_for(out / "comparison")
    place.mkdir()
    try:
        yield place
        for path in sorted(place.iterdir(), key=lambda path: path.suffix == ".json"):
            path.replace(out / path.name)
        sync_folder(out)
    finally:
        remove(place)


def _compared(run: runs.Run, objectives: list[ELBO]) -> Comparison:
    config = run.config
    return compare_objectives(
        run.program, run.data, objectives=objectives, optim=runs._adam(config.lr),
        observation=run.observation, epochs=config.epochs, warm_up_epochs=config.warm_up_epochs,
        batch_size=config.batch_size, clip_norm=config.clip_norm, num_rows=config.num_rows,
        num_repeats=config.num_repeats, num_samples=config.num_samples, device=run.device,
        seed=config.seed, engine=config.engine, progress=sys.stderr.isatty(),
    )  # fmt: skip


def _tell(run: runs.Run, found: Comparison, out: Path, config: str) -> None:
    record = json.dumps(found.record(), indent=2, allow_nan=False) + "\n"
    replace_file(out / "config.yaml", config.encode())
    replace_file(out / "comparison.json", record.encode())
    plots.save(compared(found), out / "comparison.png")
    pictures = [("Bounds by steps and time, and gradients", out / "comparison.png")]
    points = {
        row.objective: (row.at_equal_steps.rate_nats, row.at_equal_steps.distortion_nats)
        for row in found.rows
        if row.at_equal_steps is not None
    }
    if len(points) > 1:
        plots.save(plots.rate_distortion(points), out / "rate_distortion.png")
        caption = "Rate and distortion of test data after equal steps"
        pictures.append((caption, out / "rate_distortion.png"))
    page.write_report(
        out / "report.html",
        title=f"Objectives compared: {type(run.program).__name__} on {run.data.name}",
        results={row.objective: row.summary for row in found.rows},
        history=[],
        pictures=pictures,
        config=f"{found.table()}\n\n{config}",
        provenance={
            "command": f"pyro-vae compare --config {out.parent / 'config.yaml'}",
            "seed": run.config.seed,
            "device": str(run.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    )
    print(found.table())
