"""The options of ``pyro-vae train``, and those that other commands share with it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

from pyro_vae.arguments import LARGEST_COUNT
from pyro_vae.cli.parser import Parser

__all__ = [
    "add_data",
    "add_program",
    "check_ranges",
    "latent_sizes",
    "missing_codes",
    "training_parser",
]

_AT_LEAST = {
    "epochs": 0, "batch_size": 1, "patience": 1, "num_samples": 1, "num": 1, "seed": 0,
    "warm_up_epochs": 0, "num_rows": 1, "num_repeats": 20,
    "num_temperatures": 2, "num_chains": 1, "num_data": 1, "labels": 1, "repeats": 2,
    "num_labels": 1, "max_symbols": 1, "max_length": 1, "min_documents": 1,
}  # fmt: skip
_POSITIVE = ("lr", "clip_norm")


def training_parser() -> Parser:
    """Return the parser of ``pyro-vae train``."""
    parser = Parser(
        "train",
        "Train a VAE on data, evaluate it on held-out data and write a report.",
        usage="pyro-vae train [options]",
        epilog="Your own component is an import path, my_package.MyPrior, or a file, "
        "my_file.py:MyPrior. --prior.help NAME and its like show a component's arguments, given as "
        "--prior.ARGUMENT VALUE, or as 'NAME(ARGUMENT=VALUE)'.",
    )
    parser.option(
        parser, "--config", Path | None, "YAML file of these options, such as a run's own"
    )
    parser.flag(parser, "--print_config", "print the options as YAML and exit")
    add_data(parser)
    add_program(parser)
    _add_training(parser)
    _add_run(parser)
    return parser


def add_data(parser: Parser) -> None:
    """Add the options of the data."""
    group = parser.add_argument_group("data")
    add = parser.option
    help_ = (
        "name of a data set, a .npy, .npz, .txt, .csv, .parquet or .smi file, or a folder of "
        "images or texts"
    )
    add(group, "--data", str, help_, "digits")
    help_ = (
        "weight of each row in training: a .npy file with one number per row, or the name of an "
        "array in the .npz file of --data (default: its array 'weights', if any)"
    )
    add(group, "--data-weights", str | None, help_, metavar="FILE_OR_KEY")
    add(group, "--data-root", str, "folder of named data sets, also for downloads", "data")
    help_ = "numbers that mark missing values in a file besides NaN, such as -9999 or -9999,-8888"
    add(group, "--missing", missing_codes, help_, metavar="NUMBERS")
    help_ = "labels of training rows to keep, as many of each class; the others are hidden (M2)"
    add(group, "--num-labels", int | None, help_)
    help_ = "map from stored values to observations (default: by the data)"
    parser.role(group, "observation", help_)
    _add_table(parser)
    _add_text(parser)


def _add_table(parser: Parser) -> None:
    group = parser.add_argument_group("tables")
    help_ = "kinds, if not as found: age=real,sex=binary; or positive, count, categorical, date"
    parser.option(group, "--columns", str | None, help_, metavar="KINDS")
    help_ = "columns to leave out, such as identifiers: id,name"
    parser.option(group, "--ignore", str | None, help_, metavar="NAMES")
    help_ = "column that holds labels, of texts as well"
    parser.option(group, "--label-column", str | None, help_, metavar="NAME")


def _add_text(parser: Parser) -> None:
    group = parser.add_argument_group("text")
    add = parser.option
    add(
        group, "--text-column", str | None, "column of a .csv file that holds texts", metavar="NAME"
    )
    help_ = "characters, words, bag (counts of words), smiles, selfies, or a tokenizer.json"
    add(group, "--symbols", str | None, help_, metavar="S")
    help_ = "symbols to keep, by frequency (default: all characters, 10,000 words)"
    add(group, "--max-symbols", int | None, help_, metavar="N")
    help_ = "symbols of a text at most (default: of the longest)"
    add(group, "--max-length", int | None, help_, metavar="N")
    help_ = "what becomes of longer texts"
    add(group, "--longer", Literal["refuse", "cut", "drop"] | None, help_)
    help_ = "of a bag: in how many documents a word has to be"
    add(group, "--min-documents", int | None, help_, metavar="N")
    help_ = "of a bag: leaves out words such as 'the'"
    add(group, "--stop-words", Literal["english"] | None, help_, metavar="english")
    help_ = "file of the words that columns of bags count"
    add(group, "--vocabulary", Path | None, help_, metavar="FILE")
    help_ = "what becomes of rows that are no molecules (default: refuse)"
    add(group, "--invalid", Literal["refuse", "drop", "keep"] | None, help_)


def add_program(parser: Parser) -> None:
    """Add the options of the program."""
    group = parser.add_argument_group("program")
    help_ = "program with model(x) and guide(x) (default: VAE, or HierarchicalVAE of several)"
    parser.role(group, "model", help_)
    path = "pyro_vae.components.StandardNormal"
    parser.role_of_program(group, "prior", "prior p(z)", path)
    help_ = "likelihood p(x | z) (default: the program's own, or by the data)"
    parser.role(group, "likelihood", help_)
    path = "pyro_vae.components.DiagonalNormal"
    parser.role_of_program(group, "posterior", "posterior q(z | x)", path)
    parser.role(group, "network", "network of encoder and decoder", "pyro_vae.components.MLP")
    for role, density in (("encoder", "q(z | x)"), ("decoder", "p(x | z)")):
        help_ = f"network of {density} alone, in place of --network"
        parser.role_of_program(group, role, help_, names=False)
    help_ = (
        "number of latents, or of each layer from the data up, such as 64,32,16; images: "
        "CHANNELSxHEIGHTxWIDTH (default: the program's own, such as 40)"
    )
    parser.option(group, "--latent", latent_sizes, help_, metavar="SIZES")


def _add_training(parser: Parser) -> None:
    group = parser.add_argument_group("training")
    add = parser.option
    help_ = (
        "objective to maximise (default: Trace_ELBO, or TraceMeanField_ELBO where the KL has a "
        "closed form)"
    )
    parser.role(group, "objective", help_)
    help_ = "fraction of the run over which the weight of the KL rises from 0 to 1, such as 0.3"
    add(group, "--kl-warmup", float | None, help_, metavar="FRACTION")
    add(group, "--beta", float | None, "weight of the KL, as in the beta-VAE")
    help_ = "KL per layer, in nats, that is free of cost (free bits)"
    add(group, "--free-bits", float | None, help_, metavar="NATS")
    add(group, "--epochs", int | None, "number of passes over the data (default: by their size)")
    help_ = "data per step (default: 128, or the program's own)"
    add(group, "--batch-size", int | None, help_, metavar="N")
    help_ = "part of each batch whose rows have a label, such as 0.5 (default: as it comes)"
    add(group, "--labelled-share", float | None, help_, metavar="FRACTION")
    add(group, "--lr", float | None, "Adam's learning rate (default: 0.001, or own)")
    add(group, "--momentum", float | None, "Adam's beta1 (default: 0.9, or own)", metavar="M")
    help_ = "factor on the learning rate over the run"
    parser.role(group, "schedule", help_, "pyro_vae.inference.Cosine")
    help_ = "which parameters each step moves, the guide's or the model's (default: all)"
    parser.role(group, "turns", help_)
    help_ = "noise on what the encoder sees, in training alone (denoising; default: none)"
    parser.role(group, "corruption", help_)
    help_ = "part of the symbols that an autoregressive decoder is not shown, such as 0.3"
    add(group, "--word-dropout", float | None, help_, metavar="FRACTION")
    help_ = "largest norm of the gradient of the loss per datum"
    add(group, "--clip-norm", float | None, help_)
    help_ = "number of epochs without a better validation ELBO after which training stops"
    add(group, "--patience", int | None, help_)


def _add_run(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    add = parser.option
    help_ = "importance samples per datum for log p(x)"
    add(group, "--num-samples", int, help_, 1000, "N")
    help_ = "weights to evaluate: those with the best validation ELBO, or the last"
    add(group, "--weights", Literal["best", "last"], help_, "best")
    engines = Literal["auto", "eager", "recorded", "compiled"]
    help_ = "run steps eagerly, recorded or compiled; auto chooses by the length of the run"
    add(group, "--engine", engines, help_, "auto")
    precisions = Literal["float32", "tf32", "bfloat16"]
    help_ = "precision of the networks' matrix multiplications; densities are always float32"
    add(group, "--precision", precisions, help_, "float32")
    add(group, "--device", str, "device: auto (CUDA, MPS or CPU), cpu, cuda, cuda:1 or mps", "auto")
    add(group, "--seed", int, "seed for weights, noise and data order", 0)
    add(group, "--tensorboard", bool, "write TensorBoard scalars too", False)
    add(group, "--out", Path | None, "run folder (default: runs/DATA-MODEL-TIME)")
    add(group, "--init-from", Path | None, "run folder whose best weights training starts from")
    help_ = "run folder whose prior is replaced by --prior and trained alone, as by pyro-vae refit"
    add(group, "--refit", Path | None, help_)
    add(group, "--resume", Path | None, "run folder to resume, bit for bit")


# Types --------------------------------------------------------------------------------------------


def missing_codes(given: Any) -> str | None:
    """Return the numbers that stand for missing values as one word: "-9999,-8888".

    Args:
        given: A number, a list of numbers, or numbers parted by commas or blanks.

    Raises:
        ValueError: If it holds no number, or something else.
    """
    if given is None:
        return None
    text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    words = text.strip("[]() ").replace(",", " ").split()
    if words and all(_is_number(word) for word in words):
        return ",".join(words)
    raise ValueError(f"--missing {text}: give numbers, such as -9999 or -9999,-8888")


def _is_number(word: str) -> bool:
    try:
        return not math.isinf(float(word))
    except ValueError:
        return False


def latent_sizes(given: Any) -> int | str | None:
    """Return the sizes of the layers of latents as one word: 40, or "64,32,16".

    Args:
        given: A number, a list of numbers, or numbers parted by commas; "8x14x14" is the shape
            of an image.

    Raises:
        ValueError: If it holds no number, or one that is not positive.
    """
    if given is None:
        return None
    text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    words = re.split(r"\s*,\s*|\s+", text.strip("[]() ").removesuffix(","))
    if words == [""]:
        raise ValueError("--latent: name the size of at least one layer, such as 40")
    for size in (size for word in words for size in word.split("x")):
        if not re.fullmatch(r"-?[0-9]+", size):
            raise ValueError(f"--latent {text}: expected a whole number, or 64,32,16")
        if int(size) < 1:
            raise ValueError(f"--latent {text}: give 1 or more")
    return int(words[0]) if len(words) == 1 and "x" not in words[0] else ",".join(words)


_FRACTIONS = ("momentum", "word_dropout")


def check_ranges(options: Any) -> None:
    """Check the numbers among the options against their ranges.

    Raises:
        ValueError: If one is outside; names the option, its value and the range.
    """
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        least = _AT_LEAST.get(name)
        if value is None or (least is None and name not in (*_POSITIVE, *_FRACTIONS)):
            continue
        if least is None and name in _POSITIVE and not value > 0:
            raise ValueError(f"{option} {value}: give a number above 0")
        if name == "word_dropout" and not 0 <= value <= 1:
            raise ValueError(f"{option} {value:g}: give a fraction between 0 and 1")
        if name == "momentum" and not 0 <= value < 1:
            raise ValueError(f"--momentum {value}: give a number from 0 on, below 1")
        if least is not None and value < least:
            raise ValueError(f"{option} {value}: give {least} or more")
        if least is not None and name != "seed" and value > LARGEST_COUNT:
            never = f"more than {LARGEST_COUNT:,} would never end, or fit in memory"
            raise ValueError(f"{option} {value}: {never}; give fewer")
        if name == "seed" and value >= 2**63:
            raise ValueError(f"--seed {value}: give an integer below 2**63")
