"""The commands for a trained run: ``evaluate``, ``sample`` and ``plot``."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Namespace
from pathlib import Path
from typing import Literal

from pyro_vae.cli import config_files, data_record, pictures, results, runs
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data
from pyro_vae.cli.diagnosis import add_diagnosis, diagnose
from pyro_vae.cli.names import ROLES
from pyro_vae.cli.options import check_ranges, training_parser
from pyro_vae.cli.parser import Parser
from pyro_vae.cli.rows_of_tables import SUFFIXES, refuse_missing, table_of, write_table
from pyro_vae.cli.sample_files import check_suffix, write, write_texts
from pyro_vae.cli.sentences import texts_of_rows
from pyro_vae.datasets.data import in_order
from pyro_vae.evaluation import samples
from pyro_vae.files import expanded, own_folder
from pyro_vae.fitting import Fit
from pyro_vae.terminal import on_one_line

__all__ = ["evaluate", "opened", "place_of", "plot", "run_parser", "sample"]


def evaluate(arguments: list[str]) -> None:
    """Evaluate a trained run again."""
    parser = run_parser("evaluate", "Evaluate a trained run again and rewrite its report.")
    help_ = "number of importance samples per datum for log p(x)"
    parser.option(parser, "--num-samples", int | None, help_)
    add_diagnosis(parser)
    parser.flag(
        parser, "--all", "evaluate all rows of other data (--data), not only those for testing"
    )
    run, done, options, text = opened(parser, arguments)
    num_samples = options.num_samples or run.config.num_samples
    found = diagnose(run, options)
    results.report(run, done, place_of(run, options.run), text, num_samples, found, insists=False)


def sample(arguments: list[str]) -> None:
    """Draw from the prior of a trained run."""
    parser = run_parser("sample", "Draw x from the model of a trained run: z ~ p(z), x ~ p(x | z).")
    add = parser.option
    add(parser, "--num", int, "number of draws", 64)
    help_ = "write E[x | z] in place of draws, or of texts the likeliest symbols"
    parser.flag(parser, "--mean", help_)
    help_ = "draw each symbol or pixel at a temperature: 1 as the model says, 0 the likeliest"
    add(parser, "--temperature", float, help_, 1.0)
    help_ = "draw from the likeliest symbols that have this probability together, such as 0.9"
    add(parser, "--nucleus", float, help_, 1.0)
    help_ = "class to draw, by name or number, or several: 3,7 (default: all in turn)"
    add(parser, "--label", str | None, help_)
    help_ = (
        "output file: .npy, .npz for several sites, .txt for texts, .csv and the like for tables "
        "(default: RUN/samples.*)"
    )
    add(parser, "--out", Path | None, help_)
    run, _, options, _ = opened(parser, arguments, needs_data=False)
    vocabulary, columns, out = run.data.vocabulary, run.data.table, options.out
    others = [".txt"] if vocabulary is not None else [] if columns is None else SUFFIXES
    check_suffix(out, others=tuple(others))
    model = run.drawing_model(options.temperature, options.nucleus, mean=options.mean)
    x = samples.prior_samples(
        model, run.rows_like(options.label), options.num, stochastic=not options.mean,
        seed=options.seed or 0,
    )  # fmt: skip
    if vocabulary is not None and (out is None or out.suffix == ".txt"):
        texts = texts_of_rows(x, vocabulary)
        lines = write_texts(texts, out or options.run / "samples.txt")
    elif columns is not None and (out is None or out.suffix in SUFFIXES):
        cells = table_of(x, columns)
        lines = iter([write_table(cells, out or options.run / "samples.csv")])
    else:
        lines = write(x, out, options.run)
    for line in lines:
        print(on_one_line(line))


def plot(arguments: list[str]) -> None:
    """Draw a trained run's pictures again."""
    parser = run_parser("plot", "Draw the pictures of a trained run again.")
    run, done, options, _ = opened(parser, arguments)
    place = place_of(run, options.run)
    if run.on_other_data:
        own_folder(place)
    for caption, path in pictures.draw(run, done, place / "pictures"):
        print(on_one_line(f"{path}: {caption}"))


def run_parser(command: str, description: str) -> Parser:
    """Return the parser of a command for a trained run."""
    parser = Parser(command, description, usage=f"pyro-vae {command} RUN [options]")
    add = parser.option
    parser.positional("run", Path, "the run folder")
    help_ = "device: auto, cpu, cuda, cuda:1 or mps (default: the run's own)"
    add(parser, "--device", str | None, help_)
    help_ = "folder of named data sets (default: the run's own)"
    add(parser, "--data-root", str | None, help_)
    help_ = "the run's data where they are now, or other data to evaluate on"
    add(parser, "--data", str | None, help_)
    help_ = "column of texts of a .csv or .tsv file (default: the run's own)"
    add(parser, "--text-column", str | None, help_, metavar="NAME")
    add(parser, "--label-column", str | None, "column of their labels", metavar="NAME")
    help_ = "what becomes of texts longer than the run's: refuse, cut or drop (default: as in it)"
    add(parser, "--longer", Literal["refuse", "cut", "drop"] | None, help_)
    help_ = "what becomes of rows that are no molecules (default: as in the run)"
    add(parser, "--invalid", Literal["refuse", "drop", "keep"] | None, help_)
    add(parser, "--seed", int | None, "seed for random draws")
    help_ = "weights to load: the best by validation, or the last (default: as in training)"
    add(parser, "--weights", Literal["best", "last"] | None, help_)
    help_ = "file and class of the run's program, if it is your own; so for --prior and the like"
    for role in ROLES:
        parser.role(parser, role, help_ if role == "model" else SUPPRESS, names=False)
    return parser


def opened(
    parser: Parser, arguments: list[str], *, needs_data: bool = True, compares: bool = True
) -> tuple[runs.Run, Fit, Namespace, str]:
    """Return a trained run with its weights, the command's options, and the run's as text.

    Args:
        parser: Of the command.
        arguments: The words of the command line.
        needs_data: Whether a few rows will not do.
        compares: Whether to say of other data how they differ from those that it was trained on.
    """
    given = parser.read_line(arguments)
    options = parser.config(given)
    check_ranges(options)
    folder = options.run = expanded(str(options.run))
    path, record = config_files.run_config(folder), data_record.read(folder)
    training = training_parser()
    stored = training.read_file(path, given.modules)
    config_files.refuse_edited(path, "" if record is None else record.options)
    shared = (*ROLES, "device", "data_root", "text_column", "label_column", "longer", "invalid")
    config = training.config(stored, given.only(shared))
    data = (
        load_data(config.data, config)
        if record is None
        else record.evaluation_data(options, config, needs_data=needs_data, compares=compares)
    )
    settle(config, data)
    run = runs.open_run(config, data, record)
    if data.table is not None:
        refuse_missing(run, in_order(data))
    done = runs.load(run, folder, weights=options.weights or config.weights)
    return run, done, options, path.read_text()


def place_of(run: runs.Run, folder: Path) -> Path:
    """Return the folder for what is found on a run's data, or on other data."""
    if not run.on_other_data:
        return folder
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.data.name).strip(".-") or "data"
    return folder / f"on-{name}"
