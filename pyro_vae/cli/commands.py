"""The commands: parse, check, build, run, print. Imported only once a command is named."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import textwrap
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pyro_vae import datasets
from pyro_vae.cli import config_files, data_record, data_weights, pictures, runs
from pyro_vae.cli.compare import compare
from pyro_vae.cli.component_help import help_of
from pyro_vae.cli.costs import naming_options
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data
from pyro_vae.cli.diagnosis import add_diagnosis, diagnose
from pyro_vae.cli.names import ROLES, by_data, known_as, offered, stated, summary
from pyro_vae.cli.observed_sites import likelihoods
from pyro_vae.cli.options import check_ranges, training_parser
from pyro_vae.cli.parser import Given, Parser, as_dict, as_text
from pyro_vae.cli.programs import unused_options
from pyro_vae.cli.sample_files import check_suffix, write
from pyro_vae.components.automatic import distribution_names
from pyro_vae.engine.run_folder import held, new_run_folder, unused_folder
from pyro_vae.evaluation import samples
from pyro_vae.files import as_word, expanded, own_folder, replace_file, show
from pyro_vae.fitting import Fit
from pyro_vae.report import page
from pyro_vae.signals import Interrupted

__all__ = ["compare", "evaluate", "list_parts", "plot", "sample", "train"]

_DIVERGED = 3


def train(arguments: list[str]) -> int:
    """Train a program on data, evaluate it and write a report; return 3 if training diverged."""
    parser = training_parser()
    given = parser.given(arguments)
    if given.helps or given.values.get("print_config"):
        print(_asked(parser, given))
        return 0
    folder = given.values.get("resume")
    resumed = None if folder is None else expanded(str(folder))
    config, changed = _options(parser, given, resumed)
    check_ranges(config)
    data = _training_data(config, given, resumed)
    with naming_options(config):
        settle(config, data)
    data_record.make_paths_absolute(config)
    data_weights.make_path_absolute(config)
    out = _run_folder(config, data) if resumed is None else resumed
    run = runs.open_run(config, data)
    kept = as_dict(config, "out", "resume", *unused_options(config))
    if resumed is not None and (record := data_record.read(out)) is not None:
        kept["data"] = record.source["given"]  # where they are now, --data says each time
    text = as_text(kept)
    with _in_folder(out, text, resumed=resumed is not None, changed=changed):
        runs.keep_data(run, out, text)
        _warn_of_unused(config, given)
        _announce(run, out)
        with naming_options(config):
            done = runs.train(run, out=out, resume=resumed is not None)
        _evaluated_at_once(run, done, out, text)
    return _DIVERGED if runs.diverged(done) else 0


def _asked(parser: Parser, given: Given) -> str:
    """Return the help of a component, or all options as YAML."""
    config = parser.config(*parser.files(given), given)
    if given.helps:
        way, name = given.helps[0]
        return help_of(way, name, config)
    return as_text(as_dict(config)).rstrip()


def _options(parser: Parser, given: Given, resumed: Path | None) -> tuple[Namespace, bool]:
    """Return the values of the options, and whether any of a resumed run's has changed."""
    if resumed is None:
        return parser.config(*parser.files(given), given), False
    path = config_files.run_config(resumed)
    if "out" in given.values:
        raise ValueError(f"--out: a resumed run stays in its folder, {resumed}; leave --out out")
    stored = parser.held(path, given.modules)
    record = data_record.read(resumed)
    config_files.refuse_edited(path, "" if record is None else record.options)
    config = parser.config(stored, *parser.files(given), given)
    before = as_dict(parser.config(stored))
    return config, config_files.refuse_changes(resumed, before, as_dict(config))


def _training_data(config: Namespace, given: Given, resumed: Path | None) -> datasets.Dataset:
    if resumed is None:
        return load_data(config.data, config)
    return data_record.data_to_resume(resumed, given.values.get("data"), config)


def evaluate(arguments: list[str]) -> None:
    """Evaluate a trained run again."""
    parser = _run_parser("evaluate", "Evaluate a trained run again and rewrite its report.")
    help_ = "number of importance samples per datum for log p(x)"
    parser.option(parser, "--num-samples", int | None, help_)
    add_diagnosis(parser)
    parser.flag(
        parser, "--all", "evaluate all rows of other data (--data), not only those for testing"
    )
    run, done, options, text = _opened(parser, arguments)
    num_samples = options.num_samples or run.config.num_samples
    found = diagnose(run, options)
    _report(run, done, _place(run, options.run), text, num_samples, found, insists=False)


def sample(arguments: list[str]) -> None:
    """Draw from the prior of a trained run."""
    parser = _run_parser(
        "sample", "Draw x from the model of a trained run: z ~ p(z), x ~ p(x | z)."
    )
    add = parser.option
    add(parser, "--num", int, "number of draws", 64)
    parser.flag(parser, "--mean", "write E[x | z] in place of draws")
    help_ = "class to draw, by name or number, or several: 3,7 (default: all in turn)"
    add(parser, "--label", str | None, help_)
    help_ = "output file: .npy, or .npz for several sites (default: RUN/samples.*)"
    add(parser, "--out", Path | None, help_)
    run, _, options, _ = _opened(parser, arguments, needs_data=False)
    check_suffix(options.out)
    x = samples.prior_samples(
        run.program.model, run.rows_like(options.label), options.num,
        stochastic=not options.mean, seed=options.seed or 0,
    )  # fmt: skip
    for line in write(x, options.out, options.run):
        print(line)


def plot(arguments: list[str]) -> None:
    """Draw a trained run's pictures again."""
    parser = _run_parser("plot", "Draw the pictures of a trained run again.")
    run, done, options, _ = _opened(parser, arguments)
    place = _place(run, options.run)
    if run.on_other_data:
        own_folder(place)
    for caption, path in pictures.draw(run, done, place / "pictures"):
        print(f"{path}: {caption}")


def list_parts(arguments: list[str]) -> None:
    """List every component by name, with one line each."""
    parser = Parser("list", "List every component by name, with one line each.")
    help_ = "show which components combine: posteriors with priors, and objectives with posteriors"
    parser.flag(parser, "--combinations", help_)
    if parser.parse(arguments).combinations:
        from pyro_vae.cli import combinations

        for line in combinations.tables(combinations.small_parts()):
            print(line, flush=True)
        return
    print("data: " + ", ".join(datasets.NAMES) + ", or a .npy or .npz file or a folder of images")
    for option in ROLES:
        if option in ("encoder", "decoder"):
            continue  # networks, too
        print(f"\n--{option}" + (", --encoder, --decoder" if option == "network" else ""))
        kinds = by_data() if option == "likelihood" else {"": offered(option)}
        for kind, found in kinds.items():
            if kind:
                print(f" of {kind}:")
            for name, part in found.items():
                print(f"  {name:<28}{summary(part)}{_also(option, name, part)}")
    print("\nor, as --prior, --likelihood or --posterior, any of Pyro's distributions:")
    print(textwrap.fill(", ".join(distribution_names()), 98, break_on_hyphens=False))
    print("\nor any of your own: an import path (my_package.MyPrior) or file (my_file.py:MyPrior)")


def _also(option: str, name: str, part: type) -> str:
    """Return the other names of a component in this role that its line does not hold."""
    others = [
        other
        for other in stated(part, "synonyms", ())
        if known_as(other, option) == name and other not in summary(part)
    ]
    return f" Also {', '.join(others)}." if others else ""


def _run_parser(command: str, description: str) -> Parser:
    parser = Parser(command, description)
    add = parser.option
    parser.positional("run", Path, "the run folder")
    help_ = "device: auto, cpu, cuda, cuda:1 or mps (default: the run's own)"
    add(parser, "--device", str | None, help_)
    help_ = "folder of named data sets (default: the run's own)"
    add(parser, "--data-root", str | None, help_)
    help_ = "the run's data where they are now, or other data to evaluate on"
    add(parser, "--data", str | None, help_)
    add(parser, "--seed", int | None, "seed for random draws")
    help_ = "weights to load: the best by validation, or the last (default: as in training)"
    add(parser, "--weights", Literal["best", "last"] | None, help_)
    for role in ROLES:
        help_ = "file and class of the run's program, if it is your own"
        parser.role(parser, role, help_ if role == "model" else "", names=False)
    return parser


def _opened(
    parser: Parser, arguments: list[str], *, needs_data: bool = True
) -> tuple[runs.Run, Fit, Namespace, str]:
    """Return a trained run with its weights, the command's options, and the run's as text."""
    given = parser.given(arguments)
    options = parser.config(given)
    check_ranges(options)
    folder = options.run = expanded(str(options.run))
    path, record = config_files.run_config(folder), data_record.read(folder)
    training = training_parser()
    stored = training.held(path, given.modules)
    config_files.refuse_edited(path, "" if record is None else record.options)
    shared = (*ROLES, "device", "data_root")
    config = training.config(stored, given.only(shared))
    data = (
        load_data(config.data, config)
        if record is None
        else record.evaluation_data(options, config, needs_data=needs_data)
    )
    settle(config, data)
    run = runs.open_run(config, data, record)
    done = runs.load(run, folder, weights=options.weights or config.weights)
    return run, done, options, path.read_text()


def _place(run: runs.Run, folder: Path) -> Path:
    """Return the folder for what is found on a run's data, or on other data."""
    if not run.on_other_data:
        return folder
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.data.name).strip(".-") or "data"
    return folder / f"on-{name}"


def _run_folder(config: Namespace, data: datasets.Dataset) -> Path:
    if config.out is not None:
        return expanded(str(config.out))
    return unused_folder(f"{Path(data.name).stem}-{config.model.name}")


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


def _announce(run: runs.Run, out: Path) -> None:
    data = run.data
    sizes = " / ".join(str(len(part)) for part in data.parts.values())
    classes = f" in {len(data.classes)} classes" if data.classes else ""
    missing = sum(int((~part.labelled).sum()) for part in data.parts.values() if data.classes)
    classes += f" ({missing:,} rows without a label)" if missing else ""
    print(
        f"{data.name}: {sizes} (train / validation / test){classes}, {data.event_shape}, "
        f"{run.observation}, {_likelihood(run)}, on {run.device}; into "
        f"{shlex.quote(str(out))}",
        file=sys.stderr,
    )


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


def _warn_of_unused(config: Namespace, given: Given) -> None:
    """Warn of options on the command line that the program does not take."""
    if names := sorted(given.options & unused_options(config)):
        listed = ", ".join(f"--{name}" for name in names)
        print(
            f"pyro-vae: warning: {listed}: not used, since {config.model.name} has no such "
            "argument",
            file=sys.stderr,
        )


def _evaluated_at_once(run: runs.Run, done: Fit, out: Path, text: str) -> None:
    try:
        _report(run, done, out, text, run.config.num_samples, {})
    except Interrupted as stopped:
        message = f"interrupted after training; evaluate it with: pyro-vae evaluate {as_word(out)}"
        raise Interrupted(stopped.signum, message) from stopped


def _report(
    run: runs.Run,
    done: Fit,
    out: Path,
    config: str,
    num_samples: int,
    diagnosis: dict[str, Any],
    *,
    insists: bool = True,
) -> None:
    """Evaluate a run, print what is found, and store it, if that can be or the caller insists."""
    results = runs.evaluate(run, done, num_samples=num_samples) | diagnosis
    print(page.table(results))
    print("", *results["verdict"], sep="\n", flush=True)
    try:
        if run.on_other_data:
            own_folder(out)
        runs.store_results(results, out)
        drawn = pictures.draw(run, done, out / "pictures")
        runs.write_report(run, done, results, drawn, out, config)
    except OSError as error:
        if not any((folder / config_files.CONFIG).exists() for folder in (out, out.parent)):
            raise FileNotFoundError(
                f"{show(out)} was removed during the evaluation: the numbers above are not stored"
            ) from error
        if insists:
            raise
        warnings.warn(f"the numbers above are not stored: {error}", stacklevel=2)
        return
    print(f"\nreport: {out / 'report.html'}")
