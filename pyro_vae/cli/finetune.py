"""The command ``finetune``: a trained run's encoder goes on as a classifier."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae.cli import runs
from pyro_vae.cli.programs import build_program
from pyro_vae.cli.trained import opened, place_of, run_parser
from pyro_vae.datasets import Data
from pyro_vae.engine.adaptation import adapt_to_data
from pyro_vae.evaluation import Estimate
from pyro_vae.files import own_folder, replace_file
from pyro_vae.inference import Probe, Program
from pyro_vae.laboratory import FineTuned
from pyro_vae.laboratory.finetune import finetune as compare_classifiers
from pyro_vae.wording import warn

__all__ = ["finetune"]

_FILE = "finetune.json"
_SEEN_ROWS = 10_000
_NAMES = {"finetuned": "fine-tuned", "probe": "linear probe", "scratch": "from scratch"}


def finetune(arguments: list[str]) -> None:
    """Compare a fine-tuned encoder with a linear probe and with the network from scratch."""
    parser = run_parser(
        "finetune",
        "Let a trained run's encoder go on as a classifier, where few data are labelled. Its test "
        "accuracy stands beside that of a linear probe on the frozen encoder, and of the same "
        "network from new weights, over draws of the labelled data.",
    )
    add = parser.option
    add(parser, "--labels", int, "number of labelled training data of each class", 10)
    add(parser, "--repeats", int, "number of draws of them", 5)
    add(parser, "--epochs", int, "number of passes over the labelled data", 100)
    add(parser, "--batch-size", int, "number of labelled data per step", 32)
    add(parser, "--lr", float, "Adam's learning rate", 1e-3)
    run, _, options, _ = opened(parser, arguments)
    train, test = run.training_rows(_SEEN_ROWS), run.test_rows()
    found = compare_classifiers(
        run.program, train, test, fresh=lambda seed: _fresh(run, train, seed),
        labels_per_class=options.labels, num_repeats=options.repeats, epochs=options.epochs,
        batch_size=options.batch_size, lr=options.lr, seed=options.seed or 0,
    )  # fmt: skip
    print(_table(found))
    _store(found, run, place_of(run, options.run))


def _fresh(run: runs.Run, train: Data, seed: int) -> nn.Module:
    """Return the run's program as it is before training, in the units of the data."""
    torch.manual_seed(seed)
    program: Any = build_program(run.config, run.objects, run.data, run.observation)
    bound = Program(program.to(run.device).model, program.guide).on(train.names)
    rows = train.tensors(bound.fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the data are like was said when the run was trained
        adapt_to_data(Probe(bound, *rows), *rows)
    fresh: nn.Module = program
    return fresh


def _table(found: FineTuned) -> str:
    lines = [
        f"test accuracy on {found.num_test:,} data, with {found.labels_per_class} labelled data of "
        f"each class; means over {found.num_repeats} draws of these"
    ]
    for name, said in _NAMES.items():
        accuracy: Estimate = getattr(found, name)
        lines.append(f"  {said:<13} {100 * accuracy:5.1f} +- {100 * accuracy.standard_error:.1f} %")
    return "\n".join(lines)


def _store(found: FineTuned, run: runs.Run, out: Path) -> None:
    """Write the accuracies into the run's folder, if that can be."""
    record: dict[str, Any] = {}
    for name in _NAMES:
        accuracy: Estimate = getattr(found, name)
        record[f"{name}_accuracy"] = accuracy.value
        record[f"{name}_standard_error"] = accuracy.standard_error
    record |= {name: getattr(found, name) for name in ("labels_per_class", "num_repeats")}
    try:
        if run.on_other_data:
            own_folder(out)
        replace_file(out / _FILE, f"{json.dumps(record, indent=2)}\n".encode())
    except OSError as error:
        warn(f"the accuracies above are not stored: {error}")
