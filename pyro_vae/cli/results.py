"""The results of a run: its numbers, printed and stored, and the report with its pictures."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_vae.evaluation as evaluation
from pyro_vae.cli import molecular, pictures, refitting
from pyro_vae.cli.attempts import optional
from pyro_vae.cli.class_pictures import agreement
from pyro_vae.cli.config_files import CONFIG
from pyro_vae.cli.data_defaults import single_numbers
from pyro_vae.cli.observed_sites import observed_support
from pyro_vae.cli.rows_of_tables import sampled_rows
from pyro_vae.cli.runs import Run, diverged
from pyro_vae.cli.sentences import in_the_terminal, sentences
from pyro_vae.cli.topics import in_the_terminal as topics_in_the_terminal
from pyro_vae.cli.topics import numbers as numbers_of_topics
from pyro_vae.cli.topics import table_of, topics_of
from pyro_vae.datasets import Data
from pyro_vae.engine.course import divergence, is_rising, overfitting
from pyro_vae.engine.data import Dequantize, in_chunks
from pyro_vae.evaluation.code_usage import quantized_sites
from pyro_vae.evaluation.verdict import beyond_storage
from pyro_vae.files import own_folder, replace_file, show
from pyro_vae.fitting import Fit
from pyro_vae.inference import Probe, Program
from pyro_vae.report import page
from pyro_vae.report.results_table import table
from pyro_vae.report.texts import TextTable
from pyro_vae.terminal import on_one_line
from pyro_vae.wording import option

__all__ = ["evaluate", "provenance", "report", "store"]

_UNFITTED = "samples of the prior are no samples of the data until it is fitted to the codes"
_SEEN_ROWS = 10_000
_COMPARED_ROWS = 1_000  # each with each
_NUM_TOPICS = 8


def report(
    run: Run,
    done: Fit,
    out: Path,
    config: str,
    num_samples: int,
    diagnosis: dict[str, Any],
    *,
    insists: bool = True,
) -> None:
    """Evaluate a run, print what is found, and store it, if that can be or the caller insists."""
    topics = optional("the topics", lambda: topics_of(run))
    results = evaluate(run, done, num_samples=num_samples) | diagnosis
    results |= {} if topics is None else numbers_of_topics(topics)
    if not run.on_other_data:
        results |= refitting.numbers(out, done.weights)
    print(table(results))
    print("", *map(on_one_line, results["verdict"]), sep="\n", flush=True)
    texts = [*sentences(run), *sampled_rows(run)]
    if topics is not None:
        print("", *topics_in_the_terminal(topics, num_rows=_NUM_TOPICS), sep="\n", flush=True)
    for found in (found for found in texts if found.num_printed):
        print("", *in_the_terminal(found), sep="\n", flush=True)
    try:
        if run.on_other_data:
            own_folder(out)
        store(results, out)
        drawn = pictures.draw(run, done, out / "pictures")
        tables = texts if topics is None else [table_of(topics), *texts]
        _write_page(run, done, results, drawn, tables, out, config)
    except OSError as error:
        if not any((folder / CONFIG).exists() for folder in (out, out.parent)):
            raise FileNotFoundError(
                f"{show(out)} was removed during the evaluation: the numbers above are not stored"
            ) from error
        if insists:
            raise
        warnings.warn(f"the numbers above are not stored: {error}", stacklevel=2)
        return
    print(f"\nreport: {on_one_line(out / 'report.html')}")


def evaluate(run: Run, done: Fit, *, num_samples: int) -> dict[str, Any]:
    """Return the numbers of the run on its test data, nats per datum, as a plain record."""
    rows = run.test_rows()
    program = Probe(run.bound, *run.arguments(rows))
    found = (
        _reconstruction(run, program, rows)
        if program.terms.points
        else _bounds(run, done, program, rows, num_samples)
    )
    said = found.pop("verdict")
    of_molecules = molecular.numbers(run)
    said += molecular.said(of_molecules)
    return {
        **found,
        **of_molecules,
        "probe_accuracy": optional("the linear probe", lambda: _probe_accuracy(run)),
        **(optional("how classes agree", lambda: agreement(run, rows)) or {}),
        "num_parameters": _num_parameters(run),
        "epochs": done.epochs,
        "steps": done.steps,
        "seconds": done.seconds,
        "weights": done.weights,
        "evaluated_epoch": done.evaluated_epoch,
        **({} if done.init_from is None else {"init_from": done.init_from}),
        "num_test": len(rows),
        **({"num_trained_on": run.num_trained_on} if run.on_other_data else {}),
        "classes": run.data.classes,
        # A program that has diverged, or is not trained, says nothing of its components.
        "verdict": [
            *_course(done),
            *_untrained(done),
            *([] if diverged(done) or _untrained(done) else said),
        ],
    }


def _reconstruction(run: Run, program: Probe, rows: Data) -> dict[str, Any]:
    """Return the numbers of a program whose guide draws points: none of them is a bound."""
    found = evaluation.reconstruction_error(program, rows)
    activity = optional("the activity of units", lambda: evaluation.unit_activity(program, rows))
    error = found.squared_error
    return {
        "test_reconstruction_nats": found.reconstruction_nats.value,
        "test_reconstruction_standard_error": found.reconstruction_nats.standard_error,
        "test_squared_error": None if error is None else error.value,
        **({} if error is None else {"test_squared_error_standard_error": error.standard_error}),
        "active_codes": found.active_codes.value,
        **_units(activity),
        "verdict": [
            "codes are points, which have no density: log p(x), KL and bits are not defined"
            + ("" if run.config.refit else f", and {_UNFITTED}")
        ],
    }


def _bounds(run: Run, done: Fit, program: Probe, rows: Data, num_samples: int) -> dict[str, Any]:
    """Return the bounds of log p(x), their terms, and what the latents tell."""
    bound = evaluation.elbo(program, rows)
    quantized = quantized_sites(program)
    # A guide of one code puts nothing on the others: more of its samples tell nothing more.
    is_certain = {*quantized} == {*program.layout.latents}
    estimate = (
        None if is_certain else optional("log p(x)", lambda: _estimate(program, rows, num_samples))
    )
    activity = optional("the activity of units", lambda: evaluation.unit_activity(program, rows))
    information = optional("the mutual information", lambda: _information(run))
    bits_per_dim = optional("bits per dimension", lambda: _bits_per_dim(run, bound))
    return {
        "test_elbo_nats": bound.elbo_nats.value,
        "test_elbo_standard_error": bound.elbo_nats.standard_error,
        **_sampled(estimate, num_samples),
        "test_rate_nats": bound.rate_nats.value,
        "test_distortion_nats": bound.distortion_nats.value,
        **_by_site(bound),
        "bits_per_dim": bits_per_dim,
        **_by_symbol(run, rows, bound, estimate),
        **_by_word(run, program, rows),
        **_units(activity),
        **_information_record(information),
        **(_codes(program, rows) if quantized else {}),
        "verdict": [
            *beyond_storage(bits_per_dim, run.data.levels),
            *evaluation.verdict(
                activity or {}, bound.kl_nats, information,
                is_rising=is_rising(done.history, done.start),
            ),
        ],
    }  # fmt: skip


def _by_symbol(
    run: Run,
    rows: Data,
    bound: evaluation.Bound,
    estimate: evaluation.ImportanceEstimate | None,
) -> dict[str, Any]:
    """Return the numbers of texts by symbol: all nats by all symbols that are scored.

    Those are the symbols of each text and its end; a text as long as a row has none.
    """
    if run.data.vocabulary is None:
        return {}
    num_symbols = float(((rows.x != run.data.vocabulary.padding).sum(1) + 1).clamp(
        max=rows.x.shape[1]).float().mean())  # fmt: skip
    nats = -bound.elbo_nats.value / num_symbols
    found = {"symbols_per_datum": num_symbols, "nats_per_symbol": nats, "perplexity": _exp(nats)}
    if estimate is not None:
        found["sampled_perplexity"] = _exp(-estimate.mean.value / num_symbols)
    return found


def _by_word(run: Run, program: Probe, rows: Data) -> dict[str, Any]:
    """Return the perplexity of bags of words, whose columns have names."""
    if run.data.words is None:
        return {}
    found = optional("the perplexity of words", lambda: evaluation.perplexity(program, rows))
    if found is None:
        return {}
    return {
        "word_perplexity": found.upper_bound.value,
        "word_perplexity_standard_error": found.upper_bound.standard_error,
    }


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf


def _codes(program: Probe, rows: Data) -> dict[str, Any]:
    """Return how the codes of quantised latents are used, of all sites together."""
    usage = evaluation.code_usage(program, rows)
    return {
        "codes_used": sum(site.num_used for site in usage.values()),
        "num_codes": sum(site.num_codes for site in usage.values()),
        "code_perplexity": {name: site.perplexity for name, site in usage.items()},
    }


def _estimate(program: Probe, rows: Data, num_samples: int) -> evaluation.ImportanceEstimate:
    return evaluation.importance_sampling(
        program, rows, num_samples=num_samples, progress=sys.stderr.isatty()
    )


def _sampled(estimate: evaluation.ImportanceEstimate | None, num_samples: int) -> dict[str, Any]:
    if estimate is None:
        return {}
    return {
        "test_log_likelihood_nats": estimate.mean.value,
        "test_log_likelihood_standard_error": estimate.mean.standard_error,
        "num_importance_samples": num_samples,
        "effective_sample_size": float(estimate.effective_sample_size.median()),
    }


def _course(done: Fit) -> list[str]:
    """Say where training went wrong or too far, and which weights are evaluated."""
    said = divergence(done.history, done.start) or overfitting(done.history)
    if said is None:
        return []
    evaluated = f"the {done.weights} weights, of epoch {done.evaluated_epoch}, are evaluated"
    other = "; --weights best evaluates the best" if done.weights == "last" else ""
    return [f"{said}; {evaluated}{other}"]


def _untrained(done: Fit) -> list[str]:
    """Say of weights that no step has changed that they are those."""
    if done.steps or done.init_from is not None:
        return []
    return [
        "the program is not trained: these are the weights that it starts with, which say nothing "
        f"of its components; train at least one epoch ({option('epochs', 1)} or more)"
    ]


def _by_site(bound: evaluation.Bound) -> dict[str, Any]:
    """Return the distortion of each observed site, where there are several."""
    by_site = {name: nats.value for name, nats in bound.site_distortion_nats.items()}
    return {"test_site_distortion_nats": by_site} if len(by_site) > 1 else {}


def _units(activity: dict[str, evaluation.UnitActivity] | None) -> dict[str, Any]:
    if activity is None:
        return {"active_units": None}
    return {
        "active_units": sum(site.num_active for site in activity.values()),
        "num_units": sum(site.activity.numel() for site in activity.values()),
    }


def _information(run: Run) -> evaluation.Information | None:
    """Return what the latents tell of the first test data; None if a flow has no inverse."""
    try:
        return evaluation.mutual_information(run.program, run.test_rows()[:_COMPARED_ROWS])
    except ValueError:
        return None


def _information_record(found: evaluation.Information | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "mutual_information_nats": found.nats.value,
        "mutual_information_ceiling": found.ceiling,
        "aggregate_kl_nats": found.aggregate_kl.value,
    }


def _num_parameters(run: Run) -> int:
    # Functions hold no parameters: theirs are in modules that they refer to, or in Pyro's store.
    program = Program(run.program.model, run.program.guide)
    found: list[Tensor] = []
    found += [p for module in program.reachable for p in module.parameters() if p.requires_grad]
    found += program.stored_parameters().values()
    return sum(parameter.numel() for parameter in {id(p): p for p in found}.values())


def _bits_per_dim(run: Run, bound: evaluation.Bound) -> float | None:
    """Bits per dimension of the stored integers; None for data that have no such unit.

    Those are real numbers, densities of integers that were not dequantised, bags and sequences,
    data of which numbers are missing, and what a program makes of its data before it observes it.
    """
    support = observed_support(run.bound, run.test_rows()[:3])
    numbers = single_numbers(support)
    if run.data.levels is None or numbers is None or _has_missing(run):
        return None
    if numbers.is_discrete:
        return bound.bits_per_dim
    if isinstance(run.observation, Dequantize):
        return bound.bits_per_dim + math.log2(run.data.levels + 1)
    return None


def _has_missing(run: Run) -> bool:
    return any(bool(x.isnan().any()) for x in in_chunks(run.data.test.x))


def _probe_accuracy(run: Run) -> float | None:
    train, test = run.training_rows(_SEEN_ROWS), run.test_rows()
    if train.labels is None or test.labels is None or "labels" in run.bound.fields:
        return None
    train, test = (rows[rows.labelled.nonzero().flatten().cpu()] for rows in (train, test))
    if len(train.labels.unique()) < 2 or not len(test):
        return None
    means = [
        torch.cat([m.flatten(1) for m in evaluation.posterior_means(run.program, r).values()], 1)
        for r in (train, test)
    ]
    return evaluation.linear_probe(means[0], train.labels, means[1], test.labels)


def store(results: dict[str, Any], out: Path) -> None:
    """Write ``results.json`` into the run folder; numbers that are not finite are null."""
    text = json.dumps(_finite(results), indent=2)
    replace_file(out / "results.json", f"{text}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_page(
    run: Run,
    done: Fit,
    results: dict[str, Any],
    drawn: list[tuple[str, Path | str]],
    texts: list[TextTable],
    out: Path,
    config: str,
) -> None:
    """Write ``report.html`` into the run folder."""
    page.write_report(
        out / "report.html",
        title=f"{type(run.program).__name__} on {run.data.name}",
        results=results,
        history=done.history,
        pictures=drawn,
        texts=texts,
        config=_without_folders(config),
        provenance=provenance(run, f"pyro-vae train --config {out / 'config.yaml'}"),
    )


def provenance(run: Run, command: str) -> dict[str, Any]:
    """Return what a report's numbers come from: the command that repeats them, and versions."""
    return {
        "command": command,
        "seed": run.config.seed,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _without_folders(config: str) -> str:
    """Leave the folders of files out: a report is passed on, and they are its author's own."""
    return re.sub(r"^(\w+: ['\"]?)/.*/", r"\1", config, flags=re.MULTILINE)
