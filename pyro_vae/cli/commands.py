"""The commands: parse, check, build, run, print. Imported only once a command is known."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from pyro_vae import datasets
from pyro_vae.cli import data_weights, known_data, part_help, parts, pictures, runs, stored
from pyro_vae.cli.compare import compare
from pyro_vae.cli.costs import naming_options
from pyro_vae.cli.diagnosis import add_diagnosis, diagnose
from pyro_vae.cli.lists import with_lists
from pyro_vae.cli.names import PARTS, by_data, known_as, offered, stated, summary
from pyro_vae.cli.observing import likelihoods
from pyro_vae.cli.parser import Parser, check_ranges, command_parser, training_parser
from pyro_vae.cli.programs import unused_options
from pyro_vae.cli.reading import loaded
from pyro_vae.cli.sampling import check_suffix, write
from pyro_vae.cli.settled import default_arguments
from pyro_vae.cli.wishes import objective_wished
from pyro_vae.cli.words import option_values, taken_option
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
    """Train a program on data, judge it and write a report; return 3 if training diverged."""
    if (about := part_help.asked(arguments)) is not None:
        print(part_help.told(*about, arguments))
        return 0
    arguments, modules = parts.with_loaded_files(with_lists(arguments))
    arguments, resumed = taken_option(arguments, "--resume")
    arguments, named = taken_option(arguments, "--out")
    arguments = stored.with_checked(arguments, modules)
    load = None
    changed = False
    if resumed is not None:
        folder = expanded(resumed)
        arguments, changed = _resuming(folder, arguments, modules)
        if named is not None:
            raise ValueError(f"--out: a resumed run stays in its folder, {folder}; leave --out out")
        given = option_values(arguments, "--data")
        load = partial(known_data.to_go_on_with, folder, given[-1] if given else None)
    config, data = _parsed(arguments, load)
    out = _run_folder(config, data, named) if resumed is None else folder
    instances = training_parser().build(config)
    run = runs.open_run(config, instances, data)
    kept = _without(config, "config", "out", "resume", *unused_options(config))
    if resumed is not None and (known := known_data.read(out)) is not None:
        kept.data = known.source["given"]  # where they are now, --data says each time
    text = training_parser().dump(kept)
    with _in_folder(out, text, resumed=resumed is not None, changed=changed):
        runs.keep_data(run, instances, out, text)
        _say_unused(config, arguments)
        _announce(run, out)
        with naming_options(config):
            done = runs.train(run, instances, out=out, resume=resumed is not None)
        _judged_at_once(run, done, out, text)
    return _DIVERGED if runs.diverged(done) else 0


def evaluate(arguments: list[str]) -> None:
    """Evaluate a trained run again."""
    parser = _run_parser("evaluate", "Evaluate a trained run again and rewrite its report.")
    parser.add_argument("--num-samples", type=int, help="importance samples per datum for log p(x)")
    add_diagnosis(parser)
    help_ = "evaluate all rows of other data (--data), not only their test part"
    parser.add_argument("--all", action="store_true", help=help_)
    run, done, folder, options, text = _opened(parser, arguments)
    num_samples = options.num_samples or run.config.num_samples
    found = diagnose(run, options)
    _tell(run, done, _place(run, folder), text, num_samples, found, insists=False)


def sample(arguments: list[str]) -> None:
    """Draw from the prior of a trained run."""
    parser = _run_parser(
        "sample", "Draw x from the model of a trained run: z ~ p(z), x ~ p(x | z)."
    )
    parser.add_argument("--num", type=int, default=64, help="number of draws")
    parser.add_argument("--mean", action="store_true", help="write E[x | z] in place of draws")
    help_ = "class to draw, by name or number, or several: 3,7 (default: all in turn)"
    parser.add_argument("--label", help=help_)
    help_ = "a .npy file, or .npz for several sites (default: RUN/samples.*)"
    parser.add_argument("--out", type=Path, help=help_)
    run, _, folder, options, _ = _opened(parser, arguments, needs_data=False)
    check_suffix(options.out)
    x = samples.prior_samples(
        run.program.model, run.rows_like(options.label), options.num,
        stochastic=not options.mean, seed=options.seed or 0,
    )  # fmt: skip
    for line in write(x, options.out, folder):
        print(line)


def plot(arguments: list[str]) -> None:
    """Draw a trained run's pictures again."""
    parser = _run_parser("plot", "Draw the pictures of a trained run again.")
    run, done, folder, _, _ = _opened(parser, arguments)
    place = _place(run, folder)
    if run.on_other_data:
        own_folder(place)
    for caption, path in pictures.draw(run, done, place / "pictures"):
        print(f"{path}: {caption}")


def list_parts(arguments: list[str]) -> None:
    """Show every part by name, with its one line."""
    parser = command_parser("list", "Show every part by name, with one line each.")
    help_ = "show which parts combine: posteriors with priors, and objectives with posteriors"
    parser.add_argument("--combinations", action="store_true", help=help_)
    if parser.parse_args(arguments).combinations:
        from pyro_vae.cli import combinations

        for line in combinations.tables(combinations.small_parts()):
            print(line, flush=True)
        return
    print("data: " + ", ".join(datasets.NAMES) + ", or a .npy or .npz file or a folder of images")
    for option in PARTS:
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
    """Return the other names of a part in this role that its line does not hold."""
    others = [
        other
        for other in stated(part, "synonyms", ())
        if known_as(other, option) == name and other not in summary(part)
    ]
    return f" Also {', '.join(others)}." if others else ""


def _parsed(
    arguments: list[str], load: Callable[[Namespace], datasets.Dataset] | None = None
) -> tuple[Namespace, datasets.Dataset]:
    """Parse, load the data, and settle what the data decide."""
    parser = training_parser()
    config = parser.parse_args(arguments)
    check_ranges(config)
    data = load(config) if load else loaded(config.data, config)
    with naming_options(config):
        settled = [*default_arguments(parser, arguments, data), *objective_wished(config)]
    config = parser.parse_args([*arguments, *settled]) if settled else config
    known_data.absolute(config)
    data_weights.absolute(config)
    return config, data


def _resuming(folder: Path, arguments: list[str], modules: set[str]) -> tuple[list[str], bool]:
    """Return the options that a run goes on with, and whether any has changed."""
    path, known = stored.run_config(folder, modules), known_data.read(folder)
    stored.refuse_edited(path, "" if known is None else known.options)
    given = [f"--config={path}"]
    parser = training_parser()
    resumed = parser.parse_args([*given, *arguments])
    changed = stored.refuse_changes(folder, parser.parse_args(given), resumed)
    return [*given, *arguments], changed


def _run_parser(command: str, description: str) -> Parser:
    parser = command_parser(command, description)
    parser.add_argument("run", type=str, help="the run folder")
    parser.add_argument("--device", help="auto, cpu, cuda, mps (default: the run's own)")
    parser.add_argument("--data-root", help="folder of named data sets (default: the run's own)")
    help_ = "the run's data where they are now, or other data to evaluate on"
    parser.add_argument("--data", help=help_)
    parser.add_argument("--model", help="file and class of the run's program, if it is your own")
    parser.add_argument("--seed", type=int, help="seed for draws")
    help_ = "best (by validation) or last (default: as in training)"
    parser.add_argument("--weights", type=Literal["best", "last"] | None, help=help_)
    return parser


def _opened(
    parser: Parser, arguments: list[str], *, needs_data: bool = True
) -> tuple[runs.Run, Fit, Path, Namespace, str]:
    loaded, modules = parts.with_loaded_files(arguments)
    named, extra = _split_model_arguments(loaded)
    options = parser.parse_args(named)
    check_ranges(options)
    options.run = expanded(options.run)
    path = stored.run_config(options.run, modules)
    overrides = [
        word
        for option, value in (("--device", options.device), ("--data-root", options.data_root))
        if value is not None
        for word in (option, value)
    ]
    known = known_data.read(options.run)
    stored.refuse_edited(path, "" if known is None else known.options)
    load = None if known is None else partial(known.judged, options, needs_data=needs_data)
    config, data = _parsed([f"--config={path}", *extra, *overrides], load)
    run = runs.open_run(config, training_parser().build(config), data, known)
    weights = options.weights or config.weights
    done = runs.load(run, options.run, weights=weights)
    return run, done, options.run, options, path.read_text()


def _place(run: runs.Run, folder: Path) -> Path:
    """Return the folder for what is found on a run's data, or on other data."""
    if not run.on_other_data:
        return folder
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.data.name).strip(".-") or "data"
    return folder / f"on-{name}"


def _split_model_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part ``--likelihood X`` and the like, for the training parser, from a command's own."""
    own: list[str] = []
    for_training: list[str] = []
    words = iter(arguments)
    for word in words:
        option = word.removeprefix("--").partition("=")[0].partition(".")[0]
        if word.startswith("--") and option in PARTS:
            for_training += [word] if "=" in word else [word, next(words, "")]
        else:
            own.append(word)
    return own, for_training


def _run_folder(config: Namespace, data: datasets.Dataset, named: str | None) -> Path:
    if (given := named or config.out) is not None:
        return expanded(given)
    model = config.model.class_path.rpartition(".")[2]
    return unused_folder(f"{Path(data.name).stem}-{model}")


@contextlib.contextmanager
def _in_folder(out: Path, text: str, *, resumed: bool, changed: bool) -> Iterator[None]:
    """Hold a run's folder, new or gone on with, and store the options in it."""
    if not resumed:
        with new_run_folder(out):
            replace_file(out / stored.CONFIG, text.encode())
            yield
        return
    replaced = stored.replaced_config(out, text) if changed else contextlib.nullcontext()
    with held(out), replaced:
        yield


def _without(config: Namespace, *names: str) -> Namespace:
    kept = config.clone()
    for name in names:
        kept.pop(name, None)
    return kept


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
    """Return what scores the data: a part by its name, or a program of the user's own by its sites.

    What is wrong with such a program is said when it is trained.
    """
    if "likelihood" not in unused_options(run.config):
        return f"{run.config.likelihood.class_path.rpartition('.')[2]} likelihood"
    name = type(run.program).__name__
    with contextlib.suppress(Exception):
        found = likelihoods(run.bound, run.test()[:3])
        return f"{name} ({', '.join(f'{site} ~ {family}' for site, family in found.items())})"
    return name


def _say_unused(config: Namespace, arguments: list[str]) -> None:
    """Warn of options on the command line that the program does not take."""
    given = {word.removeprefix("--").partition("=")[0].partition(".")[0] for word in arguments}
    if names := sorted(given & unused_options(config)):
        program = config.model.class_path.rpartition(".")[2]
        listed = ", ".join(f"--{name}" for name in names)
        print(
            f"pyro-vae: warning: {listed}: not used, since {program} has no such argument",
            file=sys.stderr,
        )


def _judged_at_once(run: runs.Run, done: Fit, out: Path, text: str) -> None:
    try:
        _tell(run, done, out, text, run.config.num_samples, {})
    except Interrupted as stopped:
        message = f"interrupted after training; judge it with: pyro-vae evaluate {as_word(out)}"
        raise Interrupted(stopped.signum, message) from stopped


def _tell(
    run: runs.Run,
    done: Fit,
    out: Path,
    config: str,
    num_samples: int,
    diagnosis: dict[str, Any],
    *,
    insists: bool = True,
) -> None:
    """Judge a run, print what is found, and store it, if that can be or the caller insists."""
    results = runs.judge(run, done, num_samples=num_samples) | diagnosis
    print(page.table(results))
    print("", *results["verdict"], sep="\n", flush=True)
    try:
        if run.on_other_data:
            own_folder(out)
        runs.store(results, out)
        drawn = pictures.draw(run, done, out / "pictures")
        runs.tell(run, done, results, drawn, out, config)
    except OSError as error:
        if not any((folder / stored.CONFIG).exists() for folder in (out, out.parent)):
            raise FileNotFoundError(
                f"{show(out)} was removed while it was judged: the numbers above are not stored"
            ) from error
        if insists:
            raise
        warnings.warn(f"the numbers above are not stored: {error}", stacklevel=2)
        return
    print(f"\nreport: {out / 'report.html'}")
