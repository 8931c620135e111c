"""Reports show every number as what it is, escape what they are told, and need no other file."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from pyro_vae.report import plots
from pyro_vae.report.curves import curves
from pyro_vae.report.page import write_report
from pyro_vae.report.results_table import table

RESULTS = {
    "test_elbo_nats": -91.034,
    "test_elbo_standard_error": 0.041,
    "test_rate_nats": 25.3,
    "test_distortion_nats": 65.734,
    "test_log_likelihood_nats": -87.9604,
    "test_log_likelihood_standard_error": 0.0041,
    "num_importance_samples": 1000,
    "effective_sample_size": 312.44,
    "bits_per_dim": 1.2345,
    "active_units": 13,
    "num_units": 40,
    "probe_accuracy": 0.9533,
    "num_parameters": 1234567,
    "epochs": 30,
    "steps": 1407,
    "seconds": 61.23,
    "num_test": 360,
}
WRITTEN = {
    "test ELBO (nats per datum)": "-91.03 +- 0.04",
    "test log-likelihood (nats per datum)": "-87.960 +- 0.004",
    "bits per dimension": "1.234",
    "rate, KL (nats per datum)": "25.30",
    "distortion, reconstruction NLL (nats per datum)": "65.73",
    "active latent units": "13 of 40",
    "linear probe accuracy": "95.3 %",
    "importance samples per datum": "1,000",
    "effective sample size (median)": "312.4",
    "test data": "360",
    "trainable parameters": "1,234,567",
    "epochs": "30",
    "steps": "1,407",
    "training time (seconds)": "61.2",
}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The page's tags, checked to be nested well, and its text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def report(tmp_path, **changes):
    arguments = {
        "title": "digits",
        "results": RESULTS,
        "history": [{"epoch": 1, "train_nats": -90.0, "validation_elbo_nats": -91.0}],
        "pictures": [],
        "config": "data: digits\nlr: 0.001",
        "provenance": {"command": "pyro-vae train", "seed": 7, "versions": {"torch": "2.15"}},
    }
    write_report(tmp_path / "report.html", **{**arguments, **changes})
    return (tmp_path / "report.html").read_text("utf-8")


def cells(text):
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


# The table -------------------------------------------------------------------------------------


def test_the_table_has_every_number_with_its_unit_and_error():
    assert cells(table(RESULTS)) == WRITTEN


def test_the_table_is_aligned_at_the_decimal_point():
    lines = table(RESULTS).splitlines()
    ends = {re.search(r"  -?\d[\d,]*", line[30:]).end() for line in lines}
    assert len(ends) == 1


@pytest.mark.parametrize("key", RESULTS)
def test_every_key_is_optional(key):
    rest = {name: value for name, value in RESULTS.items() if name != key}
    assert cells(table({**rest, "another": 1.5}))["another"] == "1.5"
    assert table({key: RESULTS[key]})


@pytest.mark.parametrize(("value", "written"), [
    (None, "-"), (math.nan, "not finite"), (math.inf, "not finite"), (-math.inf, "not finite"),
    (1e300, "1e+300"), (torch.tensor(math.nan), "not finite"),
])  # fmt: skip
def test_extreme_values_are_named_and_stop_nothing(value, written, tmp_path):
    for key in RESULTS:
        results = {**RESULTS, key: value}
        assert (
            written in table(results)
            or ((value is None or math.isnan(value)) and "standard_error" in key)
            or ((value is None or math.isnan(value)) and key == "num_units")
        ), key
        Page(report(tmp_path, results=results, history=[]))


def test_a_missing_error_leaves_the_number_alone():
    assert cells(table({**RESULTS, "test_elbo_standard_error": None}))[
        "test ELBO (nats per datum)"
    ] == "-91.03"  # fmt: skip


@pytest.mark.parametrize(
    ("error", "written"),
    [(0.04, "-87.96 +- 0.04"), (3.0, "-87.96 +- 3.00"), (0.0, "-87.96 +- 0.00"),
     (0.00031, "-87.9600 +- 0.0003"), (math.nan, "-87.96"), (math.inf, "-87.96 +- not finite")],
)  # fmt: skip
def test_the_error_decides_the_decimals(error, written):
    results = {"test_log_likelihood_nats": -87.96, "test_log_likelihood_standard_error": error}
    assert list(cells(table(results)).values()) == [written]


def test_unknown_keys_are_shown_under_their_own_names():
    extra = {"kl_nats": {"z1": 3.123456, "z2": None}, "note": "two\nlines", "flag": True,
             "count": np.int64(5000), "precise": torch.tensor(0.5)}  # fmt: skip
    assert cells(table(extra)) == {
        "kl_nats.z1": "3.123",
        "kl_nats.z2": "-",
        "note": "two lines",
        "flag": "True",
        "count": "5,000",
        "precise": "0.5",
    }


def test_numbers_of_earlier_versions_are_read():
    assert table({"judged_epoch": 7}) == table({"evaluated_epoch": 7})
    assert "epoch of these weights" in table({"judged_epoch": 7})


def test_a_part_is_written_beside_its_whole():
    results = {"active_units": 3, "num_units": 40}
    assert list(cells(table(results)).values()) == ["3 of 40"]


@pytest.mark.parametrize(
    ("nats", "said"),
    [(4.78, "4.78 (at most log N = 5.19)"), (5.19, "at least 5.19 (saturated at log N)")],
)
def test_mutual_information_says_where_it_is_saturated(nats, said):
    results = {"mutual_information_nats": nats, "mutual_information_ceiling": 5.19}
    assert list(cells(table(results)).values()) == [said]


def test_the_verdict_is_below_the_numbers_and_not_among_them(tmp_path):
    results = {**RESULTS, "verdict": ["layer z <is> unused", "try something"]}
    assert table(results) == table(RESULTS)
    text = report(tmp_path, results=results)
    assert "<p>layer z &lt;is&gt; unused</p>\n<p>try something</p>" in text


def test_an_empty_table_is_empty():
    assert table({}) == ""


@examples(60)
@given(st.dictionaries(
    st.sampled_from([*RESULTS, "other"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.floats()),
))  # fmt: skip
def test_no_value_stops_the_table(results):
    assert len(table(results).splitlines()) <= len(results)


# The page --------------------------------------------------------------------------------------


def test_the_page_holds_every_number_its_definition_and_how_to_repeat_it(tmp_path):
    page = Page(report(tmp_path))
    text = page.text.replace("\N{MINUS SIGN}", "-").replace("\xa0\N{PLUS-MINUS SIGN}\xa0", " +- ")
    for name, written in WRITTEN.items():
        assert name in text
        assert written in text
    for words in ["log p(x) by importance sampling", "pyro-vae train", "seed7",
                  "versions.torch2.15", "data: digits\nlr: 0.001"]:  # fmt: skip
        assert words in text
    assert {"details", "summary", "figure"} <= {tag for tag, _ in page.tags}


def test_the_page_needs_no_other_file(tmp_path):
    picture = tmp_path / "a.png"
    plots.save(plots.unit_bars(torch.rand(3), torch.rand(3)), picture)
    source = report(tmp_path, pictures=[("KL per unit", picture)])
    page = Page(source)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(|\son\w+=", source)
    curve, bars = page.all("img")
    prefix = "data:image/png;base64,"
    assert base64.b64decode(bars["src"].removeprefix(prefix), validate=True) == picture.read_bytes()
    assert curve["src"].startswith(prefix)
    assert [image["alt"] for image in (curve, bars)] == ["Training curves", "KL per unit"]
    assert sum("src" in attributes or "href" in attributes for _, attributes in page.tags) == 2


def test_curves_that_are_among_the_pictures_are_not_drawn_again(tmp_path):
    plots.save(curves([]), tmp_path / "curves.png")
    page = Page(report(tmp_path, pictures=[("Bounds", tmp_path / "curves.png")]))
    assert [image["alt"] for image in page.all("img")] == ["Bounds"]


def test_the_page_fits_phones_and_follows_the_theme(tmp_path):
    source = report(tmp_path)
    assert 'name="viewport" content="width=device-width' in source
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


EVIL = "<script>alert('x')</script>\"&{title}%s\x00\x1b"


@pytest.mark.parametrize(
    "changes",
    [
        {"title": EVIL},
        {"results": {EVIL: EVIL}},
        {"pictures": [(EVIL, "nowhere.png")]},
        {"config": EVIL},
        {"provenance": {"command": EVIL}},
        {"provenance": {EVIL: {EVIL: EVIL}}},
    ],
    ids=["title", "results", "caption", "config", "command", "provenance"],
)
def test_strings_are_text_wherever_they_come_from(changes, tmp_path):
    source = report(tmp_path, **changes)
    page = Page(source)
    assert not page.all("script")
    assert "<script>alert('x')</script>\"&{title}%s" in page.text
    assert not re.search(r"[\x00\x1b]", source)


def test_a_caption_cannot_leave_its_attribute(tmp_path):
    picture = tmp_path / "a.png"
    plots.save(plots.unit_bars(torch.rand(3), torch.rand(3)), picture)
    page = Page(report(tmp_path, pictures=[(f'x" onload="{EVIL}', picture)]))
    assert all(set(image) == {"alt", "src"} for image in page.all("img"))


def test_a_missing_or_wrong_picture_is_named_in_its_place(tmp_path):
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    text = Page(
        report(tmp_path, pictures=[("A", tmp_path / "a.png"), ("B", tmp_path / "b.png")])
    ).text
    assert "The picture a.png could not be read: No such file or directory." in text
    assert "The picture b.png is not a PNG file." in text


def test_a_page_of_nothing_is_still_a_page(tmp_path):
    page = Page(report(tmp_path, results={}, history=[], config="", provenance={}))
    assert not page.all("img")


def test_bytes_of_a_file_name_that_are_no_text_do_not_stop_the_report(tmp_path):
    assert r"\udcff" in report(tmp_path, provenance={"command": "pyro-vae train --out a\udcff"})


def test_a_failed_report_leaves_nothing(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*report\.html.*directory"):
        report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
