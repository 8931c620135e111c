"""The options of ``pyro-vae train``: their types, defaults, groups and help."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from pyro.infer import ELBO
from torch import nn

from pyro_vae.arguments import LARGEST_COUNT
from pyro_vae.cli import messages
from pyro_vae.cli.calls import as_typed
from pyro_vae.cli.names import PARTS, offered
from pyro_vae.components import Family
from pyro_vae.components.conditional import Shape
from pyro_vae.engine.data import Observation
from pyro_vae.engine.turns import Turns
from pyro_vae.inference import Schedule

__all__ = [
    "DEFAULT_PARTS",
    "Parser",
    "check_ranges",
    "command_parser",
    "hide_what_is_long",
    "latent_sizes",
    "training_parser",
]

DEFAULT_PARTS = {
    "prior": "pyro_vae.components.priors.StandardNormal",
    "posterior": "pyro_vae.components.posteriors.DiagonalNormal",
    "network": "pyro_vae.components.networks.MLP",
    "schedule": "pyro_vae.inference.schedules.Cosine",
}
"""The parts that are taken unless given."""

_FILLED_IN = {
    "prior", "likelihood", "posterior", "event_shape", "latent_shape", "latent_shapes", "priors",
    "posteriors", "upward", "num_classes",
}  # fmt: skip
_AT_LEAST = {
    "epochs": 0, "batch_size": 1, "patience": 1, "num_samples": 1, "num": 1, "seed": 0,
    "warm_up_epochs": 0, "num_rows": 1, "num_repeats": 20,
    "num_temperatures": 2, "num_chains": 1, "num_data": 1,
}  # fmt: skip
_POSITIVE = ("lr", "clip_norm")


class _Help(DefaultHelpFormatter):
    """One line an option: what it is, its default, and of a part the names to choose from."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=24, **options)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.dest in PARTS and action.dest not in ("encoder", "decoder"):
            text += f": {', '.join(offered(action.dest))}, or your own"
        default = action.default
        if isinstance(default, (dict, Namespace)):
            default = default["class_path"].rpartition(".")[2]
        if default is None or default is False or default == argparse.SUPPRESS:
            return text
        if isinstance(default, list):  # of parts, which their help lists as people write them
            return text
        return f"{text} (default: {default})" if action.option_strings else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.dest in PARTS:
            return "NAME"
        return str(super()._get_default_metavar_for_optional(action))


class Parser(ArgumentParser):
    """A parser whose errors are exceptions, with one line of message."""

    # jsonargparse makes parsers of the same class for the parts; what they say is explained once.
    explains = False
    _given: Sequence[str] = ()

    def parse_args(self, args: Sequence[str], *rest: Any, **options: Any) -> Any:
        """Parse a command line.

        Raises:
            ValueError: If it cannot be parsed; says on one line what was wrong, and what would do.
        """
        self._given = self._typed(_with_negatives(args))
        return super().parse_args(self._given, *rest, **options)

    def _typed(self, words: list[str]) -> list[str]:
        """Read numbers as a person types them, and refuse those that programs read differently."""
        kinds = {name: getattr(action, "_typehint", None) for action in self._actions
                 for name in action.option_strings}  # fmt: skip
        for place, word in enumerate(words):
            option, separator, value = word.partition("=")
            if option not in kinds or kinds[option] is None:
                continue
            if separator:
                words[place] = f"{option}={as_typed(option, kinds[option], value)}"
            elif place + 1 < len(words):
                words[place + 1] = as_typed(option, kinds[option], words[place + 1])
        return words

    def build(self, config: Namespace) -> Namespace:
        """Return the options with their parts built.

        Raises:
            ValueError: If a part refuses its arguments; one line.
        """
        try:
            return self.instantiate(config)
        except ValueError as error:
            raise ValueError(messages.readable(str(error), [], [], {})) from error

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what would be printed."""
        if not self.explains:
            raise ValueError(message) from ex
        options = [name for action in self._actions for name in action.option_strings]
        defaults = {action.dest: action.default for action in self._actions}
        classes = {name: d["class_path"] for name, d in defaults.items() if isinstance(d, dict)}
        raise ValueError(messages.readable(message, self._given, options, classes)) from ex


def _with_negatives(words: Sequence[str]) -> list[str]:
    """Join options with values that begin with a minus, which argparse takes for options."""
    joined: list[str] = []
    for word in words:
        of_option = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if of_option and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def command_parser(command: str, description: str, **options: Any) -> Parser:
    """Return a parser without options for a command of ``pyro-vae``."""
    parser = Parser(
        prog=f"pyro-vae {command}", description=description, formatter_class=_Help,
        allow_abbrev=False, **options,
    )  # fmt: skip
    parser.explains = True
    return parser


def training_parser() -> Parser:
    """Return the parser of ``pyro-vae train``."""
    parser = command_parser(
        "train",
        "Train a VAE on data, evaluate it on held-out data and write a report.",
        usage="pyro-vae train [options]",
        epilog="Your own part is an import path, my_package.MyPart, or a file, my_file.py:MyPart. "
        "--prior.help NAME and its like show a part's arguments, given as --prior.ARGUMENT VALUE.",
    )
    parser.add_argument(
        "--config", action="config", help="a YAML file of these options, such as a run's own"
    )
    _add_data(parser.add_argument_group("data"))
    _add_program(parser.add_argument_group("program"))
    _add_training(parser.add_argument_group("training"))
    _add_run(parser.add_argument_group("run"))
    hide_what_is_long(parser)
    return parser


def hide_what_is_long(parser: Parser) -> None:
    """Leave out of a parser's help what belongs to single parts."""
    for action in parser._actions:
        if action.option_strings and action.option_strings[0].endswith(".help"):
            action.help = argparse.SUPPRESS
        if "--print_config" in action.option_strings:
            action.help = "print the options as YAML and exit"
            action.metavar = "[=FLAGS]"
        if action.dest == "model":
            # A stored configuration must not lead to another file of options.
            action._enable_path = False
            action.sub_add_kwargs["sub_configs"] = False


def _add_data(group: Any) -> None:
    add = group.add_argument
    add(
        "--data",
        default="digits",
        help="a data set's name, a .npy or .npz file, or a folder of images",
    )
    add("--data-weights", type=str | None, metavar="FILE_OR_KEY",
        help="weight of each row in training: a .npy file with one number per row, or the name of "
        "an array in the .npz file of --data (default: its array 'weights', if any)")  # fmt: skip
    add("--data-root", default="data", help="folder of named data sets, also for downloads")
    add("--missing", type=missing_codes, metavar="NUMBERS",
        help="codes of missing values in a file, such as -9999 or -9999,-8888, besides "
        "NaN")  # fmt: skip
    add("--observation", type=Callable[[int | None], Observation] | None,
        help="map from stored values to observations (default: by the data)")  # fmt: skip


def _add_program(group: Any) -> None:
    family = Callable[[Shape], Family]
    add = group.add_argument
    group.add_subclass_arguments(
        nn.Module, "model", skip=_FILLED_IN, instantiate=False, required=False, as_group=False,
        metavar="NAME",
        help="program with model(x) and guide(x) (default: VAE, or HierarchicalVAE of several)",
    )  # fmt: skip
    add("--prior", type=family, default=_part("prior"), help="prior p(z)")
    add("--likelihood", type=family | None, help="likelihood p(x | z) (default: by the data)")
    add("--posterior", type=family, default=_part("posterior"),
        help="posterior q(z | x)")  # fmt: skip
    network = Callable[[Shape, Shape], nn.Module]
    add("--network", type=network, default=_part("network"),
        help="network of encoder and decoder")  # fmt: skip
    add("--encoder", type=network | None, help="network of q(z | x) alone, in place of --network")
    add("--decoder", type=network | None, help="network of p(x | z) alone, in place of --network")
    add("--latent", type=latent_sizes, metavar="SIZES",
        help="number of latents, or of each layer from the data up, such as 64,32,16; images: "
        "CHANNELSxHEIGHTxWIDTH (default: the program's own, such as 40)")  # fmt: skip


def _add_training(group: Any) -> None:
    add = group.add_argument
    add("--objective", type=ELBO | None,
        help="objective to maximise (default: Trace_ELBO, or TraceMeanField_ELBO where the "
        "KL has a closed form)")  # fmt: skip
    add(
        "--kl-warmup",
        type=float | None,
        metavar="FRACTION",
        help="fraction of the run over which the weight of the KL rises from 0 to 1, such as 0.3",
    )
    add("--beta", type=float | None, help="weight of the KL, as in the beta-VAE")
    add("--free-bits", type=float | None, metavar="NATS",
        help="free bits: nats of KL per layer that cost nothing")  # fmt: skip
    add("--epochs", type=int | None, help="passes over the data (default: by their size)")
    add(
        "--batch-size",
        type=int | None,
        help="data per step (default: 128, or all of them if fewer)",
    )
    add("--lr", type=float, default=1e-3, help="Adam's learning rate")
    add("--schedule", type=Schedule, default=_part("schedule"),
        help="factor on the learning rate over the run")  # fmt: skip
    add("--turns", type=Turns | None,
        help="which parameters each step moves, the guide's or the model's "
        "(default: all)")  # fmt: skip
    add("--clip-norm", type=float | None, help="largest norm of the gradient of the loss per datum")
    add(
        "--patience",
        type=int | None,
        help="epochs without a better validation ELBO before training stops",
    )


def _add_run(group: Any) -> None:
    add = group.add_argument
    add("--num-samples", type=int, default=1000, help="importance samples per datum for log p(x)")
    add("--weights", type=Literal["best", "last"], default="best",
        help="weights to evaluate: those with the best validation ELBO, or the last")  # fmt: skip
    engines = Literal["auto", "eager", "recorded", "compiled"]
    help_ = "run steps eagerly, recorded or compiled; auto chooses by the length of the run"
    add("--engine", type=engines, default="auto", help=help_)
    precisions = Literal["float32", "tf32", "bfloat16"]
    help_ = "precision of the networks' matrix multiplications; densities are always float32"
    add("--precision", type=precisions, default="float32", help=help_)
    add("--device", default="auto", help="auto (CUDA, MPS, CPU), cpu, cuda, cuda:1, mps")
    add("--seed", type=int, default=0, help="seed for weights, noise and data order")
    add("--tensorboard", type=bool, default=False, help="write TensorBoard scalars too")
    add("--out", type=Path | None, help="run folder (default: runs/DATA-MODEL-TIME)")
    add("--init-from", type=Path | None, help="run folder whose best weights training starts from")
    add("--resume", type=Path | None, help="run folder to resume, bit for bit")


def _part(role: str) -> dict[str, str]:
    return {"class_path": DEFAULT_PARTS[role]}


def missing_codes(given: Any) -> str:
    """Return the numbers that stand for missing values as one word: "-9999,-8888".

    Args:
        given: A number, a list of numbers, or numbers parted by commas or blanks.

    Raises:
        ValueError: If it holds no number, or something else.
    """
    text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    words = text.strip("[]() ").replace(",", " ").split()
    if words and all(_is_number(word) for word in words):
        return ",".join(words)
    raise _SizesError(f"--missing {text}: give numbers, such as -9999 or -9999,-8888")


def _is_number(word: str) -> bool:
    try:
        return not math.isinf(float(word))
    except ValueError:
        return False


class _SizesError(argparse.ArgumentTypeError, ValueError):
    """Both, since a command line is read by argparse, and a file of options is not."""


def latent_sizes(given: Any) -> int | str:
    """Return the sizes of the layers of latents as one word: 40, or "64,32,16".

    Args:
        given: A number, a list of numbers, or numbers parted by commas; "8x14x14" is the shape
            of an image.

    Raises:
        ValueError: If it holds no number, or one that is not positive.
    """
    text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    words = re.split(r"\s*,\s*|\s+", text.strip("[]() ").removesuffix(","))
    if words == [""]:
        raise _SizesError("--latent: name the size of at least one layer, such as 40")
    for size in (size for word in words for size in word.split("x")):
        if not re.fullmatch(r"-?[0-9]+", size):
            raise _SizesError(f"--latent {text}: expected a whole number, or 64,32,16")
        if int(size) < 1:
            raise _SizesError(f"--latent {text}: give 1 or more")
    return int(words[0]) if len(words) == 1 and "x" not in words[0] else ",".join(words)


def check_ranges(options: Namespace) -> None:
    """Hold the numbers among the options against their ranges.

    Raises:
        ValueError: If one is outside; names the option, its value and the range.
    """
    for name, least in _AT_LEAST.items():
        value = options.get(name)
        option = f"--{name.replace('_', '-')}"
        if value is not None and value < least:
            raise ValueError(f"{option} {value}: give {least} or more")
        if value is not None and name != "seed" and value > LARGEST_COUNT:
            never = f"more than {LARGEST_COUNT:,} would never end, or fit in memory"
            raise ValueError(f"{option} {value}: {never}; give fewer")
    for name in _POSITIVE:
        value = options.get(name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a number above 0")
    if options.get("seed") is not None and options.seed >= 2**63:
        raise ValueError(f"--seed {options.seed}: give an integer below 2**63")
