"""The commands: parse, check, build, run, tell. Imported only once a command is known."""

from __future__ import annotations

import inspect
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from pyro.infer import ELBO
from torch import nn

from pyro_vae import datasets
from pyro_vae.cli import parts, pictures, runs
from pyro_vae.components import Family
from pyro_vae.components.conditional import Shape
from pyro_vae.engine.data import Observation
from pyro_vae.engine.loop import Fit, Interrupted
from pyro_vae.engine.run_folder import create_run_folder
from pyro_vae.evaluation import plots, report, samples
from pyro_vae.files import replace_file
from pyro_vae.inference import Schedule

__all__ = ["Interrupted", "evaluate", "list_parts", "plot", "sample", "train"]

_CONFIG = "config.yaml"
_FILLED_IN = {"prior", "likelihood", "posterior", "event_shape", "latent_shape"}


class _Parser(ArgumentParser):
    """A parser whose errors are exceptions, with one line of message."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ValueError(_one_line(message)) from ex


def train(arguments: list[str]) -> None:
    """Train a program on data, judge it and write a report."""
    arguments, modules = parts.with_loaded_files(arguments)
    arguments, resumed = _taken_option(arguments, "--resume")
    if resumed is not None:
        arguments = _resuming(Path(resumed), arguments, modules)
    config, data = _parsed(arguments)
    out = _run_folder(config, data) if resumed is None else Path(resumed)
    instances = _training_parser().instantiate_classes(config)
    run = runs.open_run(config, instances, data)
    text = _training_parser().dump(_without(config, "config", "out", "resume"))
    if resumed is None:
        create_run_folder(out)
        replace_file(out / _CONFIG, text.encode())
    _announce(run, out)
    done = runs.train(run, instances, out=out, resume=resumed is not None)
    _tell(run, done, out, text, config.num_samples)


def evaluate(arguments: list[str]) -> None:
    """Judge a trained run anew."""
    parser = _run_parser("evaluate", "Judge a trained run anew, and rewrite its report.")
    parser.add_argument("--num-samples", type=int, help="importance samples a datum for log p(x)")
    run, done, folder, options, text = _opened(parser, arguments)
    num_samples = options.num_samples or run.config.num_samples
    _tell(run, done, folder, text, num_samples)


def sample(arguments: list[str]) -> None:
    """Draw from the prior of a trained run."""
    parser = _run_parser(
        "sample", "Draw x from the model of a trained run: z ~ p(z), x ~ p(x | z)."
    )
    parser.add_argument("--num", type=int, default=64, help="how many to draw")
    parser.add_argument("--mean", action="store_true", help="the mean of x given z, not a draw")
    parser.add_argument("--out", type=Path, help="a .npy file; RUN/samples.npy unless given")
    run, _, folder, options, _ = _opened(parser, arguments)
    if options.num < 1:
        raise ValueError(f"--num {options.num}: draw at least one")
    out = Path(options.out or folder / "samples.npy")
    if out.suffix != ".npy":
        raise ValueError(f"--out {out}: samples are written as a .npy file")
    import io

    import numpy as np

    x = samples.prior_samples(
        run.program.model, run.test()[0], options.num, stochastic=not options.mean,
        seed=options.seed or 0,
    )  # fmt: skip
    buffer = io.BytesIO()
    np.save(buffer, x.numpy(), allow_pickle=False)
    replace_file(out, buffer.getvalue())
    print(f"wrote {out}: {tuple(x.shape)}, {x.min():g} to {x.max():g}")
    if x.dim() == 4 and x.shape[1] in (1, 3, 4):
        picture = out.with_suffix(".png")
        plots.save(plots.image_grid(x[:64], title="Samples from the prior"), picture)
        print(f"wrote {picture}")


def plot(arguments: list[str]) -> None:
    """Draw a trained run's pictures anew."""
    parser = _run_parser("plot", "Draw the pictures of a trained run anew.")
    run, done, folder, _, _ = _opened(parser, arguments)
    for caption, path in pictures.draw(run, done, folder / "pictures"):
        print(f"{path}: {caption}")


def list_parts(arguments: list[str]) -> None:
    """Show every part by name, with its one line."""
    _Parser(prog="pyro-vae list", description="Show every part by name.").parse_args(arguments)
    print("data: " + ", ".join(datasets.NAMES) + ", or a .npy or .npz file or a folder of images")
    for option in parts.PARTS:
        print(f"\n--{option}")
        for name, part in parts.offered(option).items():
            print(f"  {name:<22}{(inspect.getdoc(part) or '').partition(chr(10))[0]}")
    print("\nor any of your own: an import path (my_package.MyPrior) or file (my_file.py:MyPrior)")


def _training_parser() -> ArgumentParser:
    parser = _Parser(prog="pyro-vae train", description="Train a VAE on data and judge it.")
    add = parser.add_argument
    add("--config", action="config", help="a YAML file of these options, such as a run's own")
    add("--data", default="digits", help="a data set's name, a .npy or .npz file, or a folder")
    add("--data-root", default="data", help="where named data sets lie, or are downloaded to")
    parser.add_subclass_arguments(
        nn.Module, "model", skip=_FILLED_IN, instantiate=False, required=False,
        default={"class_path": "pyro_vae.models.VAE"},
        help="the program: a class with model(x) and guide(x), or your_file.py:YourClass",
    )  # fmt: skip
    family = Callable[[Shape], Family]
    add("--prior", type=family, default=_part("components.priors.StandardNormal"), help="p(z)")
    add("--likelihood", type=family | None, help="p(x | z); by the data unless given")
    add("--posterior", type=family, default=_part("components.posteriors.DiagonalNormal"),
        help="q(z | x)")  # fmt: skip
    add("--network", type=Callable[[Shape, Shape], nn.Module],
        default=_part("components.networks.MLP"), help="of encoder and decoder")  # fmt: skip
    add("--objective", type=ELBO | None,
        help="the ELBO estimator that is maximised; Trace_ELBO unless given, with its KL in closed "
        "form (TraceMeanField_ELBO) where there is one")  # fmt: skip
    add("--observation", type=Callable[[int | None], Observation] | None,
        help="how stored values become observations; by the data unless given")  # fmt: skip
    add("--latent", type=int, default=40, help="number of latents")
    add("--epochs", type=int | None, help="passes over the data; by their size unless given")
    add("--batch-size", type=int, default=128, help="data per step")
    add("--lr", type=float, default=1e-3, help="Adam's learning rate")
    add("--schedule", type=Schedule, default=_part("inference.schedules.Cosine"),
        help="the learning rate's factor over the run")  # fmt: skip
    add("--clip-norm", type=float | None, help="largest gradient norm of the loss per datum")
    add("--patience", type=int | None, help="stop after so many epochs without a better ELBO")
    add("--num-samples", type=int, default=1000, help="importance samples a datum for log p(x)")
    add("--device", default="auto", help="auto (CUDA, MPS, CPU), cpu, cuda, cuda:1, mps")
    add("--seed", type=int, default=0, help="of weights, noise and order")
    add("--tensorboard", type=bool, default=False, help="write TensorBoard scalars too")
    add("--out", type=Path | None, help="the run folder; runs/DATA-MODEL-TIME unless given")
    add("--resume", type=Path | None, help="a run folder to go on with, to the same bits")
    return parser


def _part(path: str) -> dict[str, str]:
    return {"class_path": f"pyro_vae.{path}"}


def _parsed(arguments: list[str]) -> tuple[Namespace, datasets.Dataset]:
    """Parse, load the data, and settle what the data decide."""
    parser = _training_parser()
    config = parser.parse_args(arguments)
    if config.latent < 1:
        raise ValueError(f"--latent {config.latent}: a VAE has at least one latent")
    if config.num_samples < 1:
        raise ValueError(f"--num-samples {config.num_samples}: give 1 or more")
    data = datasets.load(config.data, root=Path(config.data_root))
    settled = runs.default_arguments(config, data)
    return (parser.parse_args([*arguments, *settled]) if settled else config), data


def _resuming(folder: Path, arguments: list[str], modules: set[str]) -> list[str]:
    return ["--config", str(_stored_config(folder, modules)), *arguments]


def _stored_config(folder: Path, modules: set[str]) -> Path:
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no {_CONFIG}")
    try:
        parts.check_trusted(yaml.safe_load(path.read_text()), modules)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {_one_line(str(error))}") from error
    return path


def _run_parser(command: str, description: str) -> ArgumentParser:
    parser = _Parser(prog=f"pyro-vae {command}", description=description)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--device", help="auto, cpu, cuda, mps; the run's own unless given")
    parser.add_argument("--data-root", help="where named data sets lie; the run's own unless given")
    parser.add_argument("--model", help="your file and class again, if the run's program is yours")
    parser.add_argument("--seed", type=int, help="of draws")
    return parser


def _opened(
    parser: ArgumentParser, arguments: list[str]
) -> tuple[runs.Run, Fit, Path, Namespace, str]:
    loaded, modules = parts.with_loaded_files(arguments)
    named, extra = _split_model_arguments(loaded)
    options = parser.parse_args(named)
    stored = _stored_config(options.run, modules)
    overrides = [
        word
        for option, value in (("--device", options.device), ("--data-root", options.data_root))
        if value is not None
        for word in (option, value)
    ]
    config, data = _parsed(["--config", str(stored), *extra, *overrides])
    run = runs.open_run(config, _training_parser().instantiate_classes(config), data)
    return run, runs.load(run, options.run), options.run, options, stored.read_text()


def _split_model_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part ``--likelihood X`` and the like, for the training parser, from a command's own."""
    own: list[str] = []
    for_training: list[str] = []
    words = iter(arguments)
    for word in words:
        option = word.removeprefix("--").partition("=")[0].partition(".")[0]
        if word.startswith("--") and option in parts.PARTS:
            for_training += [word] if "=" in word else [word, next(words, "")]
        else:
            own.append(word)
    return own, for_training


def _taken_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    rest, value = [], None
    words = iter(arguments)
    for word in words:
        if word == option:
            value = next(words, None)
            if value is None:
                raise ValueError(f"{option} needs the folder of a run")
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def _run_folder(config: Namespace, data: datasets.Dataset) -> Path:
    if config.out is not None:
        return Path(config.out)
    model = config.model.class_path.rpartition(".")[2]
    stem = f"{Path(data.name).stem}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs") / stem


def _without(config: Namespace, *names: str) -> Namespace:
    kept = config.clone()
    for name in names:
        kept.pop(name, None)
    return kept


def _announce(run: runs.Run, out: Path) -> None:
    data = run.data
    sizes = " / ".join(str(len(part)) for part in (data.train, data.validation, data.test))
    observed = f"{type(run.observation).__name__}({run.observation.levels})"
    likelihood = run.config.likelihood.class_path.rpartition(".")[2]
    print(
        f"{data.name}: {sizes} (train / validation / test), {data.event_shape}, {observed} under "
        f"{likelihood}, on {run.device}; into {shlex.quote(str(out))}",
        file=sys.stderr,
    )


def _tell(run: runs.Run, done: Fit, out: Path, config: str, num_samples: int) -> None:
    results = runs.judge(run, done, num_samples=num_samples)
    drawn = pictures.draw(run, done, out / "pictures")
    runs.tell(run, done, results, drawn, out, config)
    print(report.table(results))
    print(f"\nreport: {out / 'report.html'}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
