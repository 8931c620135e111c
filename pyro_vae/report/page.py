"""The results of a run: a table for the terminal and a self-contained HTML page.

The page needs nothing beside itself: pictures are inside it, it runs no script and asks no other
server, it follows the reader's light or dark theme, fits a phone and prints.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pyro_vae.files import reason, replace_file
from pyro_vae.report.curves import curves
from pyro_vae.report.plots import png
from pyro_vae.report.results_table import Row, flat, one_line, rows_of
from pyro_vae.report.texts import TextTable, as_html, cleaned

__all__ = ["write_report"]


def write_report(
    path: Path,
    *,
    title: str,
    results: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, Path | str]],
    config: str,
    provenance: Mapping[str, Any],
    texts: Sequence[TextTable] = (),
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
        texts: Tables of texts, shown before the pictures.

    Raises:
        OSError: If the file cannot be written.
    """
    drawn = any(Path(file).name == "curves.png" for _, file in pictures)
    figures = [_figure("Training curves", png(curves(history)))] if history and not drawn else []
    figures += [_figure(caption, _read(file)) for caption, file in pictures]
    facts = dict(flat(provenance))
    command = facts.pop("command", None)
    if results.get("classes"):
        facts["classes"] = ", ".join(f"{n} {name}" for n, name in enumerate(results["classes"]))
    page = PAGE.format(
        title=_text(title),
        style=STYLE,
        results="\n".join(map(_result, rows_of(results))),
        verdict="\n".join(f"<p>{_text(line)}</p>" for line in _verdict(results)),
        texts="\n".join(["<h2>Texts and rows</h2>", *map(as_html, texts)] if texts else []),
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


def _verdict(results: Mapping[str, Any]) -> list[Any]:
    """Return the lines in words."""
    lines = results.get("verdict")
    return list(lines) if isinstance(lines, (list, tuple)) else []


# The page --------------------------------------------------------------------------------------


def _text(value: Any, *, lines: bool = False) -> str:
    """Escape text for HTML, without the control characters that no page may hold."""
    text = str(value) if lines else one_line("-" if value is None else value)
    return escape(cleaned(text))


def _result(row: Row) -> str:
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
.texts th, .texts td { text-align: start; padding-right: 1rem; white-space: pre-wrap; }
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
{texts}
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
