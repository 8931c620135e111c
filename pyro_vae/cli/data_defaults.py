"""Settle the options that depend on the data and the likelihood.

Nothing here goes by a component's name: a likelihood says by its support which values it takes, and
the arguments of its constructor say what it wants to know about the data.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.budget import Budget
from pyro_vae.cli.classes import HINTS, arguments_of, imported
from pyro_vae.cli.components import Component, built
from pyro_vae.cli.costs import naming_options
from pyro_vae.cli.observed_sites import observed_support
from pyro_vae.cli.parser import components_built
from pyro_vae.cli.programs import build_program, default_program, unused_options
from pyro_vae.cli.shorthand import settle_objective
from pyro_vae.cli.user_files import public_path
from pyro_vae.components.automatic import Automatic, class_path
from pyro_vae.datasets import Column, Dataset, Table
from pyro_vae.engine.data import in_chunks, observe_once
from pyro_vae.engine.defaults import BATCH_SIZE
from pyro_vae.engine.observations import AsFloat
from pyro_vae.inference import Program

__all__ = ["settle", "single_numbers"]

_TRAINING_STEPS = 12_000
_STEPS = {"lr": 1e-3, "momentum": 0.9, "epochs": None}
_BINARIZED = ("mnist", "fashion_mnist", "kmnist", "emnist")
_COMPONENTS = "pyro_vae.components"
_MOST_CATEGORIES = 20
_MOST_COLUMNS = 300
_PIXEL_LEVELS = 255  # images of fewer are counts, such as those of black cells in a scan
_FEWEST_PIXEL_VALUES = 32
_DEQUANTIZED_LEVELS = 2**20  # beyond them, what is added within a level is lost in float32
_FAMILIES = {"real": "Normal", "date": "Normal", "binary": "Bernoulli"}  # alike for many columns
_OF_PROGRAM = {"prior", "likelihood", "posterior"}


def settle(config: Any, data: Dataset) -> None:
    """Set the options that the data decide, where the command line left them open; in place.

    Unless a likelihood is given, it is the program's own where that has one. Otherwise binary data
    take a Bernoulli; the digits of scikit-learn and other counts a Binomial; the MNIST family is
    binarised anew at every visit, under a Bernoulli; other images are dequantised, whatever the
    type and the number of their levels, and real data taken as they are, under a Normal. Texts are
    sequences of symbols, with a recurrent encoder, and decoder where the likelihood takes numbers
    for each place, unless networks are given; bags of words take a Multinomial. A table with names
    takes the family of each column's kind, and Incomplete around them where cells are missing.

    A likelihood that is given decides how data are observed. Densities take integers dequantised,
    to (0, 1); probabilities of integers take them as they are. Its arguments ``total_count``,
    ``levels``, ``num_categories``, ``columns`` and ``family`` are those of the data unless given.
    An encoder of symbols reads the likelihood's. A program of the user's own that takes no
    likelihood decides by what its sites observe, as a likelihood does.

    Args:
        config: The values of the options.
        data: The data set that they name.
    """
    default_program(config)
    settle_objective(config)
    has_parts = not unused_options(config) >= _OF_PROGRAM
    if config.likelihood is None and has_parts:
        own = _settings(config).get("likelihood")
        path = _default_likelihood(data) if own is None else public_path(own)
        config.likelihood = Component(path)
    config.likelihood = _with_facts(config.likelihood, data)
    if data.vocabulary is not None and has_parts:
        _settle_networks_of_text(config, data)
    config.encoder = _with_symbols(config.encoder, config.likelihood)
    if "corruption" in config:
        config.corruption = _with_symbols(config.corruption, config.likelihood)
    if config.observation is None:
        support = _support(config, data) if has_parts else _own_support(config, data)
        config.observation = Component(f"pyro_vae.engine.{_observation(support, data)}")
    _settle_steps(config)
    if config.batch_size is None:
        config.batch_size = min(_settings(config).get("batch_size", BATCH_SIZE), len(data.train))
    if config.epochs is None:
        batches = math.ceil(len(data.train) / config.batch_size)
        # A step of a sequence runs a network once for each symbol.
        longest = 100 if data.vocabulary is None else 30
        config.epochs = min(longest, max(30, _TRAINING_STEPS // batches))


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings that the program's class states."""
    found = vars(imported(config.model.path)).get("settings")
    return found if isinstance(found, dict) else {}


def _settle_steps(config: Any) -> None:
    """Set learning rate, momentum and epochs as the program states; in place."""
    own = _settings(config)
    for name, otherwise in _STEPS.items():
        if getattr(config, name, otherwise) is None:
            setattr(config, name, own.get(name, otherwise))


def single_numbers(support: Any) -> Any:
    """Return the support of each number of a datum, where the numbers all have one; else None.

    That missing values (NaN) are allowed beside it does not count.
    """
    if support is None:
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    support = getattr(support, "base_constraint", support)
    if support.event_dim > 0 or hasattr(support, "columns"):
        return None
    return support


def _default_likelihood(data: Dataset) -> str:
    if data.table is not None and any(bool(x.isnan().any()) for x in _rows(data)):
        return f"{_COMPONENTS}.Incomplete"
    return _complete_likelihood(data)


def _complete_likelihood(data: Dataset) -> str:
    """Return the default where no number is missing, or for those that are not."""
    if data.table is not None:
        kinds = {_FAMILIES.get(column.kind, "Columns") for column in data.table.columns}
        return f"{_COMPONENTS}.{kinds.pop() if len(kinds) == 1 else 'Columns'}"
    if data.vocabulary is not None:
        return f"{_COMPONENTS}.AutoregressiveSequence"
    if data.words is not None:
        return f"{_COMPONENTS}.Multinomial"
    levels, is_table = data.levels, len(data.event_shape) < 2
    if levels == 1 or data.name in _BINARIZED:
        return f"{_COMPONENTS}.Bernoulli"
    if levels is not None and (is_table or levels < _PIXEL_LEVELS):
        return f"{_COMPONENTS}.Binomial"
    return f"{_COMPONENTS}.Normal"


def _settle_networks_of_text(config: Any, data: Dataset) -> None:
    """Let recurrent networks read and write symbols, unless networks are given; in place."""
    if config.network != Component(f"{_COMPONENTS}.MLP"):
        return
    if config.encoder is None:
        _check_symbols(config.likelihood, data)
        config.encoder = Component(f"{_COMPONENTS}.Recurrent")
    raw_shape = _of_likelihood(config, data, lambda family: family.raw_shape)
    if config.decoder is None and raw_shape is not None and raw_shape[1:] == data.event_shape:
        config.decoder = Component(f"{_COMPONENTS}.RecurrentDecoder")


def _check_symbols(likelihood: Any, data: Dataset) -> None:
    if isinstance(likelihood, Component) and "num_categories" not in likelihood.all_arguments():
        raise ValueError(
            f"--likelihood {likelihood.name}: {data.name} holds texts, rows of symbols: take "
            "AutoregressiveSequence or CategoricalSequence, or count words by --symbols bag"
        )


def _with_facts(part: Any, data: Dataset) -> Any:
    """Return a likelihood with what it wants to know about the data and has not been given."""
    if not isinstance(part, Component):
        return part
    wanted = _parameters(part.path) - set(part.arguments)
    facts = _facts(data, wanted)
    if "family" in wanted:
        facts["family"] = Component(_complete_likelihood(data))
    arguments = {**part.arguments, **facts}
    return part.with_arguments(
        **{name: _with_facts(value, data) for name, value in arguments.items()}
    )


def _with_symbols(reader: Any, likelihood: Any) -> Any:
    """Return an encoder, or a noise, of the likelihood's categories, where it asks for symbols."""
    if not isinstance(reader, Component) or not isinstance(likelihood, Component):
        return reader
    known, asked = likelihood.all_arguments(), arguments_of(reader.path).keys()
    pairs = {"num_symbols": "num_categories", "padding": "padding"}
    return reader.with_arguments(**{
        ours: known[theirs]
        for ours, theirs in pairs.items()
        if ours in asked - reader.arguments.keys() and theirs in known
    })  # fmt: skip


def _parameters(path: str) -> set[str]:
    """Return the arguments of a family that the data may decide."""
    family, names = imported(path), set(arguments_of(path))
    if isinstance(family, type) and issubclass(family, Automatic):
        return names & {"total_count"} if family.counts_up_to_it else set()
    return names


def _facts(data: Dataset, wanted: set[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    largest = _largest(data)
    if largest is not None:
        counts = {
            "total_count": largest,
            "levels": largest,
            "num_categories": max(2, largest + 1),
        }
        facts = {name: value for name, value in counts.items() if name in wanted}
    if "columns" in wanted and len(data.event_shape) == 1:
        facts["columns"] = _columns(data)
    return facts


def _largest(data: Dataset) -> int | None:
    """Return the largest of the integers that the data are, if they are integers from 0 on.

    Pixels are of 8 bits, unless so few values occur that they are no pixels but kinds or counts.
    """
    if data.levels is not None and (len(data.event_shape) < 2 or data.levels != _PIXEL_LEVELS):
        return data.levels
    largest = 1
    for x in _rows(data):
        numbers = x.nan_to_num(0.0)
        if bool((numbers < 0).any()) or not bool((numbers == numbers.round()).all()):
            return None
        largest = max(largest, int(numbers.max()))
    return largest if data.levels is None or largest < _FEWEST_PIXEL_VALUES else data.levels


def _rows(data: Dataset) -> Iterator[Tensor]:
    """All rows, some at a time: they may be more than memory holds."""
    for part in (data.train, data.validation, data.test):
        yield from (x.float() for x in in_chunks(part.x))


def _columns(data: Dataset) -> list[Component]:
    """Return the family of each column: bits, a few categories, counts or real numbers."""
    if data.table is not None:
        _refuse_many(data.name, data.table)
        return [_of_kind(column) for column in data.table.columns]
    whole = torch.ones(data.event_shape, dtype=torch.bool)
    largest = torch.full(data.event_shape, -math.inf)
    for x in _rows(data):
        whole &= (x.isnan() | ((x == x.round()) & (x >= 0))).all(0)
        largest = torch.maximum(largest, x.nan_to_num(-math.inf).amax(0))
    return [_column(*column) for column in zip(whole.tolist(), largest.tolist(), strict=True)]


def _refuse_many(name: str, table: Table) -> None:
    """Refuse more columns of several kinds than a program is built of in seconds."""
    if len(table) > _MOST_COLUMNS:
        raise ValueError(
            f"{name}: {len(table):,} columns of several kinds, and Columns has a family for each "
            f"of {_MOST_COLUMNS} at most: leave some out (--ignore), or take all for real numbers: "
            "--likelihood Normal, or --likelihood Incomplete --likelihood.family Normal where some "
            "are missing"
        )


def _of_kind(column: Column) -> Component:
    """Return the family of a column that has a kind."""
    if column.kind == "categorical":
        return Component(f"{_COMPONENTS}.Categorical", {"num_categories": len(column.categories)})
    if column.kind in _FAMILIES:
        return Component(f"{_COMPONENTS}.{_FAMILIES[column.kind]}")
    return Component(class_path("NegativeBinomial" if column.kind == "count" else "LogNormal"))


def _column(whole: bool, largest: float) -> Component:
    if not whole:
        return Component(f"{_COMPONENTS}.Normal")
    if largest <= 1:
        return Component(f"{_COMPONENTS}.Bernoulli")
    if largest < _MOST_CATEGORIES:
        return Component(f"{_COMPONENTS}.Categorical", {"num_categories": int(largest) + 1})
    return Component(class_path("NegativeBinomial"))


def _support(config: Any, data: Dataset) -> Any:
    """Return the support of the likelihood; None where it states none."""
    return _of_likelihood(
        config, data, lambda family: family(torch.zeros(family.raw_shape)).support
    )


def _of_likelihood(config: Any, data: Dataset, ask: Callable[[Any], Any]) -> Any:
    """Build the likelihood once to ask it something; None where it does not know."""
    build = built("--likelihood", HINTS["likelihood"], config.likelihood)
    with naming_options(config), torch.random.fork_rng(devices=[]), torch.no_grad(), Budget():
        family = build(data.event_shape)
        with contextlib.suppress(AttributeError, NotImplementedError):
            return ask(family)
    return None


def _own_support(config: Any, data: Dataset) -> Any:
    """Return the support of the one site of a program that observes its data as they are.

    None of any other program: it makes of its data itself what its sites observe.
    """
    few = data.train[:3]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            as_they_are = AsFloat(data.levels)
            pair: Any = build_program(config, components_built(config), data, as_they_are)
            program = Program(pair.model, pair.guide).on(few.names)
            return observed_support(program, observe_once(few, as_they_are, seed=0, device="cpu"))
        except Exception:  # what is wrong with a program is said when it is trained
            return None


def _observation(support: Any, data: Dataset) -> str:
    numbers = single_numbers(support)
    if numbers is None or data.levels is None:
        return "AsFloat"
    if numbers is constraints.boolean:
        return "Binarize" if data.name in _BINARIZED else "AsFloat"
    return "AsFloat" if numbers.is_discrete or data.levels > _DEQUANTIZED_LEVELS else "Dequantize"
