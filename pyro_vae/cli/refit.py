"""The command ``refit``: a trained run's prior is replaced, and the new one trained alone."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from pathlib import Path
from typing import Any, Literal

from pyro_vae.cli import config_files, data_record
from pyro_vae.cli.component_help import help_of
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data, make_paths_absolute
from pyro_vae.cli.options import check_ranges, training_parser
from pyro_vae.cli.parser import Given, Parser
from pyro_vae.cli.programs import unused_options
from pyro_vae.cli.train import trained
from pyro_vae.files import expanded

__all__ = ["refit"]

_OF_PROGRAM = (
    "model", "likelihood", "posterior", "network", "encoder", "decoder", "observation"
)  # fmt: skip
_OF_TRAINING = (
    "epochs", "batch_size", "lr", "schedule", "clip_norm", "patience", "engine", "device", "seed",
    "num_samples", "weights", "out",
)  # fmt: skip
_ANEW = ("objective", "turns", "kl_warmup", "beta", "free_bits", "init_from", "tensorboard")
"""Options of the first training that say nothing of the second."""


def refit(arguments: list[str]) -> int:
    """Replace a trained run's prior and train the new one alone; return 3 if it diverged."""
    parser = _parser()
    given = parser.read_line(arguments)
    if given.helps:
        way, name = given.helps[0]
        print(help_of(way, name, Namespace(**parser.defaults)))
        return 0
    options = parser.config(given)
    check_ranges(options)
    folder = expanded(str(options.run))
    config = _config(folder, given, options)
    _check_prior(folder, given, config)
    record = data_record.read(folder)
    if record is None:
        data = load_data(config.data, config)
    else:
        data = data_record.data_to_resume(folder, options.data, config)
        config.data = record.place(folder, options.data)
    settle(config, data)
    make_paths_absolute(config)
    return trained(config, data, Given({}, [], []))


def _parser() -> Parser:
    parser = Parser(
        "refit",
        "Replace the prior of a trained run and train the new one alone. Encoder and decoder keep "
        "their bits; E_q[log p(z)] is maximised on the run's data. The result is a run of its own.",
        usage="pyro-vae refit RUN --prior NAME [options]",
        epilog="The table says how many nats the new prior gains on held-out data, with its "
        "standard error, and KL(q(z) || p(z)) under both priors, estimated from up to 1,000 test "
        "data.",
    )
    parser.positional("run", Path, "the run folder")
    parser.role(parser, "prior", "the new prior p(z)")
    help_ = "file and class of the run's program, if it is your own; so for --posterior and others"
    for role in _OF_PROGRAM:
        parser.role(parser, role, help_ if role == "model" else SUPPRESS, names=False)
    _add_training(parser)
    return parser


def _add_training(parser: Parser) -> None:
    add = parser.option
    add(parser, "--epochs", int | None, "number of passes over the data (default: by their size)")
    add(parser, "--batch-size", int | None, "number of data per step (default: the run's own)")
    add(parser, "--lr", float, "Adam's learning rate", 1e-3)
    help_ = "factor on the learning rate over the run"
    parser.role(parser, "schedule", help_, "pyro_vae.inference.Cosine")
    help_ = "largest norm of the gradient of the loss per datum"
    add(parser, "--clip-norm", float | None, help_)
    help_ = "number of epochs without a better validation ELBO after which training stops"
    add(parser, "--patience", int | None, help_)
    add(parser, "--num-samples", int, "number of importance samples per datum for log p(x)", 1000)
    help_ = "weights to evaluate: those with the best validation ELBO, or the last"
    add(parser, "--weights", Literal["best", "last"], help_, "best")
    engines = Literal["auto", "eager", "recorded", "compiled"]
    add(parser, "--engine", engines, "run steps eagerly, recorded or compiled, as in train", "auto")
    help_ = "device: auto, cpu, cuda, cuda:1 or mps (default: the run's own)"
    add(parser, "--device", str | None, help_)
    help_ = "folder of named data sets (default: the run's own)"
    add(parser, "--data-root", str | None, help_)
    add(parser, "--data", str | None, "the run's data where they are now")
    add(parser, "--seed", int, "seed for the new prior, noise and data order", 0)
    add(parser, "--out", Path | None, "run folder (default: runs/DATA-MODEL-refit-TIME)")


def _config(folder: Path, given: Given, options: Namespace) -> Any:
    """Return the options of the new run: those of the old one, but for its prior and training."""
    path, record = config_files.run_config(folder), data_record.read(folder)
    training = training_parser()
    stored = training.read_file(path, given.modules)
    config_files.refuse_edited(path, "" if record is None else record.options)
    config = training.config(stored, given.only(("prior", *_OF_PROGRAM, "data_root")))
    for name in _ANEW:
        setattr(config, name, training.defaults[name])
    kept = {name: getattr(config, name) for name in ("batch_size", "device")}
    for name in _OF_TRAINING:
        value = getattr(options, name)
        setattr(config, name, kept.get(name) if value is None else value)
    config.refit = folder
    return config


def _check_prior(folder: Path, given: Given, config: Any) -> None:
    if "prior" not in given.values:
        raise ValueError("--prior: name the new prior, such as --prior NeuralSpline")
    name = config.model.name
    if "prior" in unused_options(config):
        raise ValueError(f"{folder}: {name} takes no prior, so that there is none to replace")
    if "," in str(config.latent):
        raise ValueError(
            f"{folder}: {name} has several layers, all of which take --prior; replace that of the "
            "top layer in Python, by laboratory.refit(vae, data, prior=...)"
        )
