"""The results of a run: a table for the terminal and a self-contained HTML page.

The page needs nothing beside itself: pictures are inside it, it runs no script and asks no other
server, it follows the reader's light or dark theme, fits a phone and prints.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae.files import reason, replace_file
from pyro_vae.report.curves import curves
from pyro_vae.report.plots import png

__all__ = ["table", "write_report"]


class _Number(NamedTuple):
    """How one number of the results is called, written and explained."""

    name: str
    write: Callable[[float], str]
    meaning: str


class _Row(NamedTuple):
    key: str
    name: str
    value: str
    meaning: str


def table(results: Mapping[str, Any]) -> str:
    """Return the results as lines of plain text, ``name  value +- standard error``, points aligned.

    Args:
        results: Numbers by name, see ``write_report``. None reads "-", NaN and infinity read
            "not finite", and numbers this module has no name for come last under their keys.
    """
    rows = list(_rows(results))
    width = max((len(row.name) for row in rows), default=0)
    places = max((_num_leading(row.value) for row in rows), default=0)
    return "\n".join(
        f"{row.name:<{width}}  {' ' * (places - (_num_leading(row.value) or places))}{row.value}"
        for row in rows
    )


def _num_leading(value: str) -> int:
    """Return how many characters stand before the decimal point, 0 where there is no number."""
    number = re.match(r"-?\d[\d,]*", value)
    return number.end() if number else 0


def write_report(
    path: Path,
    *,
    title: str,
    results: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, Path | str]],
    config: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write the report of a run as one HTML file, which appears complete or not at all.

    Args:
        path: The file to write.
        title: The heading of the page.
        results: ``test_elbo_nats`` with ``test_elbo_standard_error``, ``test_rate_nats``,
            ``test_distortion_nats``, ``test_log_likelihood_nats`` and so on, all optional; nats
            are per datum. A key that this module does not know is shown under its own name.
            ``verdict`` is a list of lines, shown below the numbers, and ``classes`` the names of
            the classes, shown among the facts.
        history: One record per epoch, as ``curves`` takes it; the curves are drawn here
            unless a picture named ``curves.png`` has them.
        pictures: Captions and PNG files, in the order of the page; a file that is missing or no
            PNG is named on the page in place of the picture, as is why there is none, if a
            sentence stands in the place of the file.
        config: The configuration of the run, as text.
        provenance: What is needed to repeat the run: ``command``, and versions, hardware, seed.

    Raises:
        OSError: If the file cannot be written.
    """
    drawn = any(Path(file).name == "curves.png" for _, file in pictures)
    figures = [_figure("Training curves", png(curves(history)))] if history and not drawn else []
    figures += [_figure(caption, _read(file)) for caption, file in pictures]
    facts = dict(_flat(provenance))
    command = facts.pop("command", None)
    if results.get("classes"):
        facts["classes"] = ", ".join(f"{n} {name}" for n, name in enumerate(results["classes"]))
    page = PAGE.format(
        title=_text(title),
        style=STYLE,
        results="\n".join(map(_result, _rows(results))),
        verdict="\n".join(f"<p>{_text(line)}</p>" for line in _verdict(results)),
        figures="\n".join(["<h2>Pictures</h2>", *figures] if figures else []),
        command=f"<h2>Repeat this run</h2>\n<pre>{_text(command, lines=True)}</pre>"
        if command
        else "",
        facts="\n".join(
            f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in facts.items()
        ),
        config=_text(config, lines=True),
    )
    # Names of files need not be valid text; the report must still be written.
    replace_file(path, page.encode("utf-8", "backslashreplace"))


# Numbers ---------------------------------------------------------------------------------------


def _nats(value: float) -> str:
    return f"{value:,.2f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


TEXTS = ("verdict", "classes")
NUMBERS = {
    "test_elbo_nats": _Number(
        "test ELBO (nats per datum)",
        _nats,
        "Evidence lower bound, E_q[log p(x, z) - log q(z | x)], averaged over the test data; "
        "at most the log-likelihood, higher is better.",
    ),
    "refit_gained_nats": _Number(
        "gained by the new prior (nats per datum)",
        _nats,
        "E_q[log p(z)] under the new prior less that under the old one, of the same draws for the "
        "test data; encoder and decoder are the same, so that the ELBO has risen by as much.",
    ),
    "code_gained_nats": _Number(
        "log p(z) of the codes gained by the new prior (nats per datum)",
        _nats,
        "That under the new prior less that under the old one, of the codes of the test data; no "
        "bound of log p(x), of which there is none.",
    ),
    "code_log_density_nats": _Number(
        "log p(z) of the codes (nats per datum)",
        _nats,
        "Under the new prior, averaged over the codes of the test data.",
    ),
    "code_log_density_before_nats": _Number(
        "log p(z) of the codes under the old prior (nats per datum)",
        _nats,
        "The same, under the prior that was replaced.",
    ),
    "elbo_before_nats": _Number(
        "test ELBO under the old prior (nats per datum)",
        _nats,
        "That of the run whose prior was replaced, on the same test data.",
    ),
    "test_log_likelihood_nats": _Number(
        "test log-likelihood (nats per datum)",
        _nats,
        "log p(x) by importance sampling with the guide as proposal, averaged over the test data; "
        "in expectation a lower bound that tightens with the number of samples.",
    ),
    "bits_per_dim": _Number(
        "bits per dimension",
        lambda value: f"{value:.3f}",
        "-ELBO on the test data in bits per integer of a datum, as stored; lower is better.",
    ),
    "test_reconstruction_nats": _Number(
        "test reconstruction, log p(x | z) (nats per datum)",
        _nats,
        "The log-density of the test data given their codes; no bound of log p(x).",
    ),
    "test_squared_error": _Number(
        "test squared error (per number)",
        lambda value: f"{value:,.4g}",
        "Of the mean of x given its code, in squared units of the data as they are observed.",
    ),
    "active_codes": _Number(
        "codes that are not zero (per datum)", _count, "On average over the test data."
    ),
    "codes_used": _Number(
        "codes used", _count, "Codes of the codebook that occur in the test data."
    ),
    "code_perplexity": _Number(
        "perplexity of the codes",
        lambda value: f"{value:,.1f}",
        "The exponential of the entropy of the codes' shares: from 1 to the number of codes.",
    ),
    "test_rate_nats": _Number(
        "rate, KL (nats per datum)",
        _nats,
        "E_q[log q(z | x) - log p(z)]: the KL of the posterior from the prior, what z tells of x.",
    ),
    "test_distortion_nats": _Number(
        "distortion, reconstruction NLL (nats per datum)",
        _nats,
        "E_q[-log p(x | z)]: what z leaves untold; the ELBO is -(rate + distortion).",
    ),
    "test_site_distortion_nats": _Number(
        "distortion, reconstruction NLL (nats per datum)", _nats, "That of one site."
    ),
    "active_units": _Number(
        "active latent units",
        _count,
        "Units whose posterior mean varies over the data by a variance of more than 0.01 "
        "(Burda, Grosse, Salakhutdinov, 2016).",
    ),
    "mutual_information_nats": _Number(
        "mutual information of data and latents (nats)",
        _nats,
        "What z tells which of the test data it was drawn from; at most the logarithm of their "
        "number (Hoffman, Johnson, 2016).",
    ),
    "aggregate_kl_nats": _Number(
        "marginal KL, KL(q(z) || p(z)) (nats)",
        _nats,
        "KL of the mixture of these data's posteriors from the prior: the rate less the mutual "
        "information; too large by as much as that is too small.",
    ),
    "aggregate_kl_before_nats": _Number(
        "marginal KL from the old prior (nats)",
        _nats,
        "The same, of the same draws, from the prior that was replaced.",
    ),
    "probe_accuracy": _Number(
        "linear probe accuracy",
        _percent,
        "Test data whose label a logistic regression on the posterior means predicts.",
    ),
    "test_accuracy": _Number(
        "test accuracy",
        _percent,
        "Test data whose label is the likeliest class of q(y | x), which is not given it.",
    ),
    "cluster_accuracy": _Number(
        "cluster accuracy",
        _percent,
        "Test data in the cluster of their class, each class matched with the cluster that has "
        "most of it.",
    ),
    "cluster_information": _Number(
        "mutual information of clusters and classes, normalised",
        lambda value: f"{value:.3f}",
        "2 I(cluster; class) / (H(cluster) + H(class)): 0 where they are independent, 1 where one "
        "tells the other.",
    ),
    "num_importance_samples": _Number(
        "importance samples per datum",
        _count,
        "Draws from the guide for each estimate of log p(x).",
    ),
    "effective_sample_size": _Number(
        "effective sample size (median)",
        _count,
        "1 / sum of squared normalised importance weights, median over the test data; near 1, "
        "the log-likelihood is too low.",
    ),
    "annealed_log_likelihood_nats": _Number(
        "AIS log-likelihood (nats per datum)",
        _nats,
        "log p(x) of the first test data by annealed importance sampling, from the guide, or from "
        "the prior where the guide is a flow without an inverse; in expectation a lower bound that "
        "tightens with the number of temperatures (Neal, 2001).",
    ),
    "sampled_log_likelihood_nats": _Number(
        "IS log-likelihood of the same data (nats per datum)",
        _nats,
        "log p(x) of the same data with the guide as proposal; the larger of the two is nearer.",
    ),
    "bracket_nats": _Number(
        "BDMC gap (nats per datum)",
        _nats,
        "How far apart the lower and the upper bound on log p(x) are, on data that the model "
        "simulated: how far off annealing can be (Grosse, Ghahramani, Adams, 2015).",
    ),
    "inference_gap_nats": _Number(
        "inference gap (nats per datum)",
        _nats,
        "log p(x), by the larger estimate, less the ELBO (Cremer, Li, Duvenaud, 2018).",
    ),
    "approximation_gap_nats": _Number(
        "approximation gap (nats per datum)",
        _nats,
        "log p(x) less the ELBO of each datum's best q.",
    ),
    "amortization_gap_nats": _Number(
        "amortization gap (nats per datum)",
        _nats,
        "The ELBO of each datum's best q of the family, less the encoder's.",
    ),
    "annealing_acceptance": _Number(
        "HMC acceptance rate",
        _percent,
        "By Hamiltonian Monte Carlo; about 65 % is good.",
    ),
    "annealing_effective_sample_size": _Number(
        "AIS effective sample size (median)",
        _count,
        "1 / sum of squared normalised weights of a datum's chains; near 1, anneal more slowly.",
    ),
    "annealing_seconds": _Number(
        "AIS time (seconds)",
        lambda value: f"{value:,.1f}",
        "What annealing took, with the bracket where there is one; it grows with the temperatures.",
    ),
    "num_temperatures": _Number("AIS temperatures", _count, "Steps from the prior to p(x, z)."),
    "num_diagnosed": _Number(
        "test data of AIS and gaps", _count, "The first ones of the test data."
    ),
    "num_simulated": _Number("data simulated for the BDMC gap", _count, "By the model."),
    "num_test": _Number(
        "test data", _count, "Data behind every test number, never trained on but for those below."
    ),
    "num_trained_on": _Number(
        "of these, trained on", _count, "Rows of these other data that the run was trained on."
    ),
    "num_parameters": _Number("trainable parameters", _count, "Of model and guide together."),
    "weights": _Number(
        "evaluated weights",
        _count,
        "The best by the ELBO of the validation data, or the last; test data choose nothing.",
    ),
    "evaluated_epoch": _Number(
        "epoch of these weights", _count, "After which the program had these weights."
    ),
    "refit_of": _Number("refitted from", _count, "The run whose prior was replaced."),
    "init_from": _Number("started from", _count, "Another run's weights, before the first step."),
    "epochs": _Number("epochs", _count, "Passes over the training data."),
    "steps": _Number("steps", _count, "Updates of the parameters."),
    "seconds": _Number("training time (seconds)", lambda value: f"{value:,.1f}", "Wall clock."),
}
PARTNERS = {
    "test_elbo_standard_error": "test_elbo_nats",
    "refit_gained_standard_error": "refit_gained_nats",
    "elbo_before_standard_error": "elbo_before_nats",
    "code_gained_standard_error": "code_gained_nats",
    "code_log_density_standard_error": "code_log_density_nats",
    "code_log_density_before_standard_error": "code_log_density_before_nats",
    "test_log_likelihood_standard_error": "test_log_likelihood_nats",
    "annealed_log_likelihood_standard_error": "annealed_log_likelihood_nats",
    "sampled_log_likelihood_standard_error": "sampled_log_likelihood_nats",
    "bracket_standard_error": "bracket_nats",
    "inference_gap_standard_error": "inference_gap_nats",
    "approximation_gap_standard_error": "approximation_gap_nats",
    "amortization_gap_standard_error": "amortization_gap_nats",
    "test_reconstruction_standard_error": "test_reconstruction_nats",
    "test_squared_error_standard_error": "test_squared_error",
    "num_units": "active_units",
    "num_codes": "codes_used",
    "mutual_information_ceiling": "mutual_information_nats",
    "num_chains": "annealing_effective_sample_size",
}
_WHOLES = {
    "num_codes": "of {}",
    "num_units": "of {}",
    "num_chains": "of {}",
}
# What earlier versions called numbers in `results.json`.
_RENAMED = {"judged_epoch": "evaluated_epoch"}
_SATURATED = 0.98  # of its ceiling: an estimate from N data cannot tell more than log N


def _rows(results: Mapping[str, Any]) -> Iterator[_Row]:
    flat = {_RENAMED.get(key, key): value for key, value in _flat(results) if key not in TEXTS}
    hidden = {part for part, whole in PARTNERS.items() if whole in flat}
    wholes = {key: key.partition(".")[0] for key in flat}
    known = [key for whole in NUMBERS for key in flat if wholes[key] == whole]
    for key in [*known, *(key for key in flat if wholes[key] not in NUMBERS)]:
        if key not in hidden:
            number = NUMBERS.get(wholes[key], _Number(key, _plain, ""))
            part = key.removeprefix(wholes[key]).replace(".", " of ", 1) if key in known else ""
            name = _one_line(number.name.replace(" (", f"{part} (", 1))
            yield _Row(key, name, _value(key, flat, number.write), number.meaning)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(key: str, results: Mapping[str, Any], write: Callable[[float], str]) -> str:
    """Write a number, with its standard error or its whole beside it where there is one."""
    text = _written(results[key], write)
    partner = next((part for part, whole in PARTNERS.items() if whole == key), "")
    number, beside = _number(results[key]), _number(results.get(partner))
    if number is None or not math.isfinite(number) or beside is None or math.isnan(beside):
        return text  # of a single datum, an error is not known
    if partner == "mutual_information_ceiling":
        if number >= _SATURATED * beside:
            return f"at least {text} (saturated at log N)"
        return f"{text} (at most log N = {_written(beside, write)})"
    if partner in _WHOLES:
        whole = _written(beside, _count)
        return f"{text} {_WHOLES[partner].format(whole)}"
    if math.isfinite(beside):
        write = f"{{:,.{_places(beside)}f}}".format
    return f"{_written(number, write)} +- {_written(beside, write)}"


def _places(error: float) -> int:
    """Return enough decimals to show one digit of the error, at least two."""
    return min(8, max(2, -math.floor(math.log10(error)))) if error > 0 else 2


def _written(value: Any, write: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    number = _number(value)
    if number is None:
        return _one_line(value) or "-"
    if not math.isfinite(number):
        return "not finite"
    return write(number) if abs(number) < 1e12 else f"{number:.4g}"


def _number(value: Any) -> float | None:
    """Return what is one number as a float: Python's, numpy's and torch's; None otherwise."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _one_line(value: Any) -> str:
    return re.sub(r"\s+", " ", str(value)).strip()


def _verdict(results: Mapping[str, Any]) -> list[Any]:
    """Return the lines in words."""
    lines = results.get("verdict")
    return list(lines) if isinstance(lines, (list, tuple)) else []


# The page --------------------------------------------------------------------------------------


def _text(value: Any, *, lines: bool = False) -> str:
    """Escape text for HTML, without the control characters that no page may hold."""
    text = str(value) if lines else _one_line("-" if value is None else value)
    return escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text))


def _result(row: _Row) -> str:
    value = _text(row.value).replace(" +- ", "&nbsp;&plusmn;&nbsp;")
    value = re.sub(r"(^|\s)-(?=\d)", r"\1&minus;", value)
    meaning = f"<small>{_text(row.meaning)}</small>" if row.meaning else ""
    return f"<tr><th>{_text(row.name)}{meaning}</th><td>{value}</td></tr>"


def _read(file: Path | str) -> bytes | str:
    """Return the bytes of a PNG file, or a sentence on why there are none."""
    if isinstance(file, str):
        return file
    try:
        content = file.read_bytes()
    except OSError as error:
        return f"The picture {file.name} could not be read: {reason(error)}."
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return f"The picture {file.name} is not a PNG file."
    return content


def _figure(caption: str, content: bytes | str) -> str:
    if isinstance(content, str):
        inside = f'<p class="missing">{_text(content)}</p>'
    else:
        data = base64.b64encode(content).decode("ascii")
        inside = f'<img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{inside}<figcaption>{_text(caption)}</figcaption></figure>"


STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #5f6673; --line: #d9dce2; --back: #fff;
  --card: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #a3aab6; --line: #3a404c;
  --back: #16181d; --card: #21252d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; text-align: left; padding-right: 1rem; }
td { text-align: right; font-variant-numeric: tabular-nums; }
.results td { min-width: 8rem; font-weight: 600; }
small { display: block; color: var(--soft); font-weight: 400; }
figure { margin: 1.2rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 6px;
  background: #fff; }
figcaption, .missing { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
pre { padding: .8rem; border-radius: 6px; background: var(--card); white-space: pre-wrap;
  font: 13px/1.45 ui-monospace, monospace; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 700; margin: 2.2rem 0 .6rem; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --back: #fff;
  --card: #f5f6f8; } body { padding: 0; max-width: none; } }
""".strip()

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
<h2>Results</h2>
<table class="results">
{results}
</table>
<p><small>&plusmn; is one standard error.</small></p>
{verdict}
{figures}
{command}
<h2>Provenance</h2>
<table>
{facts}
</table>
<details>
<summary>Configuration</summary>
<pre>{config}</pre>
</details>
</body>
</html>
"""
