"""Runs whose prior alone is trained: the run that they come from, and what the new prior gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyro_vae.cli import config_files, data_record, runs
from pyro_vae.cli.components import components_in
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import with_weights
from pyro_vae.cli.options import training_parser
from pyro_vae.evaluation import Estimate
from pyro_vae.files import as_word, replace_file
from pyro_vae.fitting import Fit
from pyro_vae.laboratory.refit import Refit, refit_as_set

__all__ = ["numbers", "train"]

_FILE = "refit.json"


def train(run: runs.Run, *, out: Path, resume: bool) -> Fit:
    """Train the prior of a run alone, into the folder ``out``; store what it gives beside it."""
    if run.config.init_from is not None:
        raise ValueError(
            f"--init-from {run.config.init_from}: the run starts from that of --refit; leave "
            "--init-from out"
        )
    before = _source(run)
    found = refit_as_set(
        before.program,
        run.program,
        with_weights(run.config, run.data),
        runs.settings_of(run, out=out, resume=resume),
    )
    record = {"refit_of": Path(run.config.refit).name, **_record(found)}
    replace_file(out / _FILE, f"{json.dumps(record, indent=2)}\n".encode())
    return found.fit


def numbers(out: Path, weights: str) -> dict[str, Any]:
    """Return what the new prior of the run in a folder gave; nothing of other runs and weights."""
    path = out / _FILE
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return record if record.pop("weights", None) == weights else {}


def _record(found: Refit) -> dict[str, Any]:
    before, after, weights = found.before, found.after, {"weights": found.fit.weights}
    if before.bound is None:  # the guide draws points
        return {
            **weights,
            **_estimate("code_gained", found.gained_nats),
            **_estimate("code_log_density", after.log_p_nats),
            **_estimate("code_log_density_before", before.log_p_nats),
        }
    record = {
        **weights,
        **_estimate("refit_gained", found.gained_nats),
        **_estimate("elbo_before", before.bound.elbo_nats),
    }
    if before.information is not None:
        record["aggregate_kl_before_nats"] = before.information.aggregate_kl.value
    return record


def _estimate(name: str, found: Estimate) -> dict[str, Any]:
    return {f"{name}_nats": found.value, f"{name}_standard_error": found.standard_error}


def _source(run: runs.Run) -> runs.Run:
    """Return the run that a run's encoder and decoder come from, with its weights."""
    folder = Path(run.config.refit)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{as_word(folder)} is not there any more, whose encoder and decoder this run has: put "
            "the folder back"
        )
    # What this run names, its own command line has allowed.
    named = {part.path for value in vars(run.config).values() for part in components_in(value)}
    training = training_parser()
    stored = training.read_file(
        config_files.run_config(folder), {path.rpartition(".")[0] for path in named}
    )
    config = training.config(stored)
    config.device, config.data_root = run.config.device, run.config.data_root
    settle(config, run.data)
    found = runs.open_run(config, run.data, data_record.read(folder))
    runs.load(found, folder, weights=config.weights)
    return found
