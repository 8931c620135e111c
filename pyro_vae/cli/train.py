"""The command ``train``: parse, settle what the data decide, train, evaluate, report."""

from __future__ import annotations

import contextlib
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from pyro_vae import datasets
from pyro_vae.cli import config_files, data_record, refitting, runs
from pyro_vae.cli.component_help import help_of
from pyro_vae.cli.costs import naming_options
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data, make_paths_absolute
from pyro_vae.cli.observed_sites import likelihoods
from pyro_vae.cli.options import check_ranges, training_parser
from pyro_vae.cli.parser import Given, Parser, as_dict, as_text
from pyro_vae.cli.programs import unused_options
from pyro_vae.cli.rows_of_tables import described
from pyro_vae.engine.run_folder import held, new_run_folder, unused_folder
from pyro_vae.files import as_word, expanded, replace_file
from pyro_vae.fitting import Fit
from pyro_vae.signals import Interrupted
from pyro_vae.terminal import on_one_line

__all__ = ["train", "trained"]

_DIVERGED = 3


def train(arguments: list[str]) -> int:
    """Train a program on data, evaluate it and write a report; return 3 if training diverged."""
    parser = training_parser()
    given = parser.read_line(arguments)
    if given.helps or given.values.get("print_config"):
        print(_asked(parser, given))
        return 0
    folder = given.values.get("resume")
    resumed = None if folder is None else expanded(str(folder))
    config, changed = _options(parser, given, resumed)
    check_ranges(config)
    data = _training_data(config, given, resumed)
    settle(config, data)
    make_paths_absolute(config)
    return trained(config, data, given, resumed=resumed, changed=changed)


def trained(
    config: Namespace,
    data: datasets.Dataset,
    given: Given,
    *,
    resumed: Path | None = None,
    changed: bool = False,
) -> int:
    """Train, evaluate and report a run whose options are settled; return the exit status.

    Args:
        config: The values of the options.
        data: The data set.
        given: What the command line says.
        resumed: The folder of the run that is gone on with; None for a new one.
        changed: Whether any of its options has changed.
    """
    out = _run_folder(config, data) if resumed is None else resumed
    run = runs.open_run(config, data)
    runs.foresee(run)
    kept = as_dict(config, "out", "resume", *unused_options(config))
    if resumed is not None and (record := data_record.read(out)) is not None:
        kept["data"] = record.source["given"]  # where they are now, --data says each time
    text = as_text(kept)
    with _in_folder(out, text, resumed=resumed is not None, changed=changed):
        runs.keep_data(run, out, text)
        _warn_of_unused(config, given)
        _announce(run, out)
        with naming_options(config):
            fitted = runs.train if config.refit is None else refitting.train
            done = fitted(run, out=out, resume=resumed is not None)
        _evaluated_at_once(run, done, out, text)
    return _DIVERGED if runs.diverged(done) else 0


def _asked(parser: Parser, given: Given) -> str:
    """Return the help of a component, or all options as YAML."""
    config = parser.config(*parser.read_files(given), given)
    if given.helps:
        way, name = given.helps[0]
        return help_of(way, name, config)
    return as_text(as_dict(config)).rstrip()


def _options(parser: Parser, given: Given, resumed: Path | None) -> tuple[Namespace, bool]:
    """Return the values of the options, and whether any of a resumed run's has changed."""
    if resumed is None:
        return parser.config(*parser.read_files(given), given), False
    path = config_files.run_config(resumed)
    if "out" in given.values:
        raise ValueError(f"--out: a resumed run stays in its folder, {resumed}; leave --out out")
    stored = parser.read_file(path, given.modules)
    record = data_record.read(resumed)
    config_files.refuse_edited(path, "" if record is None else record.options)
    config = parser.config(stored, *parser.read_files(given), given)
    before = as_dict(parser.config(stored))
    return config, config_files.refuse_changes(resumed, before, as_dict(config))


def _training_data(config: Namespace, given: Given, resumed: Path | None) -> datasets.Dataset:
    if resumed is None:
        return load_data(config.data, config)
    return data_record.data_to_resume(resumed, given.values.get("data"), config)


def _run_folder(config: Namespace, data: datasets.Dataset) -> Path:
    if config.out is not None:
        return expanded(str(config.out))
    what = config.model.name if config.refit is None else f"{config.model.name}-refit"
    return unused_folder(f"{Path(data.name).stem}-{what}")


@contextlib.contextmanager
def _in_folder(out: Path, text: str, *, resumed: bool, changed: bool) -> Iterator[None]:
    """Hold a run's folder, new or gone on with, and store the options in it."""
    if not resumed:
        with new_run_folder(out):
            replace_file(out / config_files.CONFIG, text.encode())
            yield
        return
    replaced = config_files.replaced_config(out, text) if changed else contextlib.nullcontext()
    with held(out), replaced:
        yield


def _warn_of_unused(config: Namespace, given: Given) -> None:
    """Warn of options on the command line that the program does not take."""
    if names := sorted(given.options & unused_options(config)):
        listed = ", ".join(f"--{name}" for name in names)
        print(
            f"pyro-vae: warning: {listed}: not used, since {config.model.name} has no such "
            "argument",
            file=sys.stderr,
        )


def _announce(run: runs.Run, out: Path) -> None:
    data = run.data
    sizes = " / ".join(str(len(part)) for part in data.parts.values())
    classes = f" in {len(data.classes)} classes" if data.classes else ""
    missing = sum(int((~part.labelled).sum()) for part in data.parts.values() if data.classes)
    classes += f" ({missing:,} rows without a label)" if missing else ""
    shape = str(data.event_shape)
    if data.vocabulary is not None:
        kind = data.vocabulary.splitter.kind
        shape = f"texts of up to {data.event_shape[0]} of {len(data.vocabulary) - 1:,} {kind}"
    if data.words is not None:
        shape = f"counts of {len(data.words):,} words"
    if data.table is not None:
        shape = f"a table of {len(data.table):,} column{'s' * (len(data.table) != 1)}"
    said = (
        f"{data.name}: {sizes} (train / validation / test){classes}, {shape}, "
        f"{run.observation}, {_likelihood(run)}, on {run.device}; into {shlex.quote(str(out))}"
    )
    print(on_one_line(said), file=sys.stderr)
    for line in () if data.table is None else described(data.table):
        print(on_one_line(line), file=sys.stderr)


def _likelihood(run: runs.Run) -> str:
    """Return what scores the data: a likelihood, or the sites of a program of the user's own.

    What is wrong with such a program is said when it is trained.
    """
    if "likelihood" not in unused_options(run.config):
        return f"{run.config.likelihood.name} likelihood"
    name = type(run.program).__name__
    with contextlib.suppress(Exception):
        found = likelihoods(run.bound, run.test_rows()[:3])
        return f"{name} ({', '.join(f'{site} ~ {family}' for site, family in found.items())})"
    return name


def _evaluated_at_once(run: runs.Run, done: Fit, out: Path, text: str) -> None:
    from pyro_vae.cli import results  # with matplotlib, whose import takes a while

    try:
        results.report(run, done, out, text, run.config.num_samples, {})
    except Interrupted as stopped:
        message = f"interrupted after training; evaluate it with: pyro-vae evaluate {as_word(out)}"
        raise Interrupted(stopped.signum, message) from stopped
