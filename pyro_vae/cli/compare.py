"""The command ``compare``: objectives as words, the laboratory, and what it writes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pyro.infer import ELBO

from pyro_vae.cli import runs
from pyro_vae.cli.component_help import help_of
from pyro_vae.cli.components import built
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data, make_paths_absolute, with_weights
from pyro_vae.cli.options import add_data, add_program, check_ranges
from pyro_vae.cli.parser import Parser, as_dict, as_text
from pyro_vae.cli.results import provenance
from pyro_vae.engine.run_folder import new_run_folder, unused_folder
from pyro_vae.files import expanded, remove, replace_file, sync_folder, temporary_for
from pyro_vae.laboratory import Comparison
from pyro_vae.laboratory.comparison import compare as compare_objectives
from pyro_vae.report import page, plots
from pyro_vae.report.comparison import compared
from pyro_vae.terminal import on_one_line

__all__ = ["compare", "comparison_parser"]

_DEFAULT = "ELBO AnalyticELBO IWAE(8) DReG(8) Renyi(0.5,8) RWS(8)"


def compare(arguments: list[str]) -> None:
    """Compare objectives on the same data, from the same weights."""
    parser = comparison_parser()
    given = parser.read_line(arguments)
    config = parser.config(*parser.read_files(given), given)
    if given.helps:
        way, name = given.helps[0]
        print(help_of(way, name, config))
        return
    check_ranges(config)
    if not config.objectives:
        raise ValueError("--objectives: the list is empty; name at least one, such as ELBO IWAE")
    data = load_data(config.data, config)
    settle(config, data)
    make_paths_absolute(config)
    text = as_text(as_dict(config, "out"))
    objectives = [built("--objectives", ELBO, objective) for objective in config.objectives]
    run = runs.open_run(config, with_weights(config, data))
    named = None if config.out is None else str(config.out)
    out = expanded(named or unused_folder(f"compare-{Path(data.name).stem}"))
    with new_run_folder(out, kept_on=()):
        said = f"comparing {len(objectives)} objectives on {data.name}"
        print(on_one_line(said), file=sys.stderr)
        found = _compared(run, objectives)
        with _put_in_place_together(out) as place:
            _report(run, found, place, text)
        print(f"\nreport: {on_one_line(out / 'report.html')}")


def comparison_parser() -> Parser:
    """Return the parser of ``pyro-vae compare``."""
    parser = Parser(
        "compare",
        "Compare objectives: the bias, noise and cost of their gradients, and what they train to.",
        usage="pyro-vae compare [options]",
        epilog="--objectives ELBO IWAE 'DReG(num_particles=16)' names objectives with arguments; "
        "'pyro-vae list' shows them all. Your own is an import path or a file, my_file.py:MyBound.",
    )
    parser.option(parser, "--config", Path | None, "YAML file of these options")
    add_data(parser)
    add_program(parser)
    _add_comparison(parser)
    return parser


def _add_comparison(parser: Parser) -> None:
    group = parser.add_argument_group("comparison")
    add = parser.option
    parser.components(group, "--objectives", "objective", "objectives to compare", _DEFAULT)
    add(group, "--epochs", int, "number of passes over the data for each objective", 20)
    help_ = "number of epochs of the ELBO before gradients are measured"
    add(group, "--warm-up-epochs", int, help_, 3)
    help_ = "number of data per step (default: 128, or all of them if fewer)"
    add(group, "--batch-size", int | None, help_)
    add(group, "--lr", float, "Adam's learning rate, which is constant", 1e-3)
    help_ = "largest norm of the gradient of the loss per datum"
    add(group, "--clip-norm", float | None, help_)
    add(group, "--num-rows", int, "number of data on which gradients are measured", 64)
    add(group, "--num-repeats", int, "number of draws of each gradient", 200)
    add(group, "--num-samples", int, "number of importance samples per datum for log p(x)", 200)
    engines = Literal["auto", "eager", "recorded", "compiled"]
    add(group, "--engine", engines, "run steps eagerly, recorded or compiled, as in train", "auto")
    add(group, "--device", str, "device: auto (CUDA, MPS or CPU), cpu, cuda, cuda:1 or mps", "auto")
    add(group, "--seed", int, "seed for weights, noise and data order", 0)
    add(group, "--out", Path | None, "output folder (default: runs/compare-DATA-TIME)")


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


def _report(run: runs.Run, found: Comparison, out: Path, config: str) -> None:
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
        provenance=provenance(run, f"pyro-vae compare --config {out.parent / 'config.yaml'}"),
    )
    print(found.table())
