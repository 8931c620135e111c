"""The pages of docs/: their examples run, their links lead somewhere."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "experiments" / "README.md"]
SHARED, *EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (DOCS / "extending.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)
# One section uses what an earlier one imports.
IMPORTS = "from dataclasses import dataclass\nfrom pyro_vae.distributions import positive\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: re.search(r"class (\w+)", code)[1])
def test_every_example_of_extending_runs(example, monkeypatch):
    module = types.ModuleType("extending")  # dataclasses look for their module
    monkeypatch.setitem(sys.modules, "extending", module)
    quick = example.replace("epochs=2", "epochs=2, progress=False")
    exec(SHARED + IMPORTS + quick, vars(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert all((page.parent / link).is_file() for link in links if "://" not in link), links
