"""``pyro-vae evaluate --ais --gaps``: annealed log p(x), and inference gaps."""

from __future__ import annotations

import sys
import time
from typing import Any

import pyro_vae.evaluation as evaluation
from pyro_vae.cli.parser import Parser
from pyro_vae.cli.runs import Run
from pyro_vae.datasets import Data
from pyro_vae.evaluation.gaps import best_estimate
from pyro_vae.inference import Probe
from pyro_vae.inference.latent_space import LatentSpace

__all__ = ["add_diagnosis", "diagnose"]

_NUM_IMPORTANCE_SAMPLES = 5000
_SIMULATED_SHARE = 4


def add_diagnosis(parser: Parser) -> None:
    """Add the options of what is measured only where it is asked for, since it takes a minute."""
    help_ = "log p(x) by annealed importance sampling, and its BDMC gap on simulated data"
    parser.flag(parser, "--ais", help_)
    parser.flag(parser, "--gaps", "approximation gap (family of q) and amortization gap (encoder)")
    add = parser.option
    add(parser, "--num-temperatures", int, "number of AIS temperatures; more are more exact", 100)
    add(parser, "--num-chains", int, "number of AIS chains per datum", 8)
    add(parser, "--num-data", int, "number of test data for --ais and --gaps", 100)


def diagnose(run: Run, options: Any) -> dict[str, Any]:
    """Return the numbers that were asked for, on the first test data, as a plain record."""
    if not (options.ais or options.gaps):
        return {}
    model, guide = run.program.model, run.program.guide
    rows = run.test_rows()[: options.num_data]
    shown: dict[str, Any] = {"progress": sys.stderr.isatty(), "seed": options.seed or 0}
    annealing = {
        "num_temperatures": options.num_temperatures, "num_chains": options.num_chains, **shown,
    }  # fmt: skip
    start, began = _start(run, rows), time.perf_counter()
    annealed = evaluation.annealed_importance_sampling(model, start, rows, **annealing)
    seconds = time.perf_counter() - began
    sampled = evaluation.importance_sampling(
        model, guide, rows, num_samples=_NUM_IMPORTANCE_SAMPLES, **shown
    )
    results: dict[str, Any] = {
        "num_diagnosed": len(rows),
        "annealed_log_likelihood_nats": annealed.mean.value,
        "annealed_log_likelihood_standard_error": annealed.mean.standard_error,
        "sampled_log_likelihood_nats": sampled.mean.value,
        "sampled_log_likelihood_standard_error": sampled.mean.standard_error,
    }
    if options.ais:
        results |= _bracket(model, start, rows, annealing) | {
            "annealing_acceptance": annealed.acceptance.mean().item(),
            "annealing_effective_sample_size": annealed.effective_sample_size.median().item(),
            "annealing_seconds": seconds,
            "num_chains": options.num_chains,
            "num_temperatures": options.num_temperatures,
        }
    if options.gaps:
        log_p = best_estimate(sampled, annealed).log_p
        results |= _gaps(model, guide, rows, log_p=log_p, **shown)
    return results


def _bracket(model: Any, start: Any, rows: Data, annealing: Any) -> dict[str, Any]:
    num_simulated = max(1, len(rows) // _SIMULATED_SHARE)
    bracket = evaluation.bidirectional(model, start, rows, num_data=num_simulated, **annealing)
    return {
        "bracket_nats": bracket.width_nats.value,
        "bracket_standard_error": bracket.width_nats.standard_error,
        "num_simulated": num_simulated,
    }


def _gaps(model: Any, guide: Any, rows: Data, **options: Any) -> dict[str, Any]:
    gaps = evaluation.inference_gaps(model, guide, rows, **options)
    results: dict[str, Any] = {}
    for name in ("inference", "approximation", "amortization"):
        gap = getattr(gaps, name)
        results[f"{name}_gap_nats"] = gap.value
        results[f"{name}_gap_standard_error"] = gap.standard_error
    return results


def _start(run: Run, rows: Data) -> Any:
    """Return the guide, which is nearer to the posterior; None, the prior, if it has no density."""
    few = run.arguments(rows[:2])
    try:
        LatentSpace.of(run.bound, Probe(run.bound, *few).layout, *few).check_guide(*few)
    except ValueError:
        return None
    return run.program.guide
