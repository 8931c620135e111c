"""What data and likelihood settle: how data are observed, arguments from the data, and the unit."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from pyro_vae.cli import results, runs
from pyro_vae.cli.classes import named
from pyro_vae.cli.config_files import check_trusted
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.parser import as_dict, as_text
from pyro_vae.components import Automatic, Family
from pyro_vae.components.automatic import distribution_names
from pyro_vae.datasets import Dataset, from_arrays
from pyro_vae.evaluation.verdict import beyond_storage

RNG = np.random.default_rng(0)
HOLES = RNG.random((30, 4)) < 0.2
HOLES[0] = False
COUNTS = RNG.integers(0, 13, (30, 4))
COUNTS[0, 0] = 12
BITS = RNG.integers(0, 2, (30, 4))
REAL = RNG.normal(size=(30, 4))
TABLE = np.stack([REAL[:, 0], BITS[:, 1], COUNTS[:, 2] % 5, 50 * COUNTS[:, 0]], 1).astype(float)
TABLE[0, 2] = 4
IMAGES = RNG.integers(0, 256, (30, 3, 2, 2)).astype("u1")
IMAGES[0] = 254
PIXELS = np.minimum(IMAGES[:, 0], 254)
DATA = {
    "real": REAL,
    "counts": COUNTS,
    "bits": BITS,
    "bytes": IMAGES,
    "grey": IMAGES[:, :1],
    "bytes as bytes": PIXELS,
    "bytes as integers": PIXELS.astype("i8"),
    "bytes as words": PIXELS.astype("u2"),
    "bytes as floats": PIXELS.astype("f4"),
    "words": (257 * PIXELS.astype("i4")).astype("u2"),
    "words as floats": 257.0 * PIXELS,
    "words of 12 bits": 16 * PIXELS.astype("i8"),
    "kinds in a map": PIXELS.astype("i8") // 51,
    "black and white": PIXELS > 100,
    "black and white as floats": (PIXELS > 100).astype(float),
    "deep": 2**22 * PIXELS.astype("i8"),
    "unit": RNG.random((30, 4)),
    "table": TABLE,
    "float counts": COUNTS.astype(float),
    "real with holes": np.where(HOLES, np.nan, REAL),
    "counts with holes": np.where(HOLES, np.nan, COUNTS),
    "bits with holes": np.where(HOLES, np.nan, BITS),
    "table with holes": np.where(HOLES, np.nan, TABLE),
}


def data_of(kind: str) -> Dataset:
    name = "mnist" if kind == "grey" else kind
    return from_arrays(DATA[kind], name=name)


def settled(kind: str, *options: str) -> dict:
    """Return the configuration of a command line once the data have settled it."""
    config = training_parser().parse(options)
    settle(config, data_of(kind))
    return as_dict(config)


# By the data: the likelihood given, then observation, likelihood and its arguments as settled.
SETTLED = {
    "real": ("", "AsFloat", "Normal", {"scale": None}),
    "counts": ("", "AsFloat", "Binomial", {"total_count": 12}),
    "bits": ("", "AsFloat", "Bernoulli", {}),
    "bytes": ("", "Dequantize", "Normal", {}),
    "grey": ("", "Binarize", "Bernoulli", {}),
    **{
        f"bytes as {kind}": ("", "Dequantize", "Normal", {})
        for kind in ("bytes", "integers", "words", "floats")
    },
    "words": ("", "Dequantize", "Normal", {}),
    "words as floats": ("", "Dequantize", "Normal", {}),
    "words of 12 bits": ("", "Dequantize", "Normal", {}),
    "kinds in a map": ("Categorical", "AsFloat", "Categorical", {"num_categories": 5}),
    "black and white": ("", "AsFloat", "Bernoulli", {}),
    "black and white as floats": ("", "AsFloat", "Bernoulli", {}),
    "deep": ("", "AsFloat", "Normal", {}),
    "unit": ("", "AsFloat", "Normal", {}),
    "real with holes": ("", "AsFloat", "Normal", {}),
    "grey 1": ("ContinuousBernoulli", "Dequantize", "ContinuousBernoulli", {}),
    "grey 2": ("LogitNormal", "Dequantize", "LogitNormal", {}),
    "grey 3": ("Beta", "Dequantize", "Beta", {}),
    "grey 4": ("Categorical", "AsFloat", "Categorical", {"num_categories": 256}),
    "grey 5": ("DiscretizedLogisticMixture", "AsFloat", "DiscretizedLogisticMixture", {}),
    "grey 6": ("Laplace", "Dequantize", "Laplace", {"scale": None}),
    "grey 7": ("Bernoulli --observation AsFloat", "AsFloat", "Bernoulli", {}),
    "grey 8": ("PixelCNN", "AsFloat", "PixelCNN", {"levels": 255}),
    "grey 9": ("PixelCNN --likelihood.levels 1", "Binarize", "PixelCNN", {"levels": 1}),
    "kinds in a map 1": ("PixelCNN", "AsFloat", "PixelCNN", {"levels": 4}),
    "black and white 1": ("PixelCNN", "AsFloat", "PixelCNN", {"levels": 1}),
    "counts 1": ("DiscretizedLogistic", "AsFloat", "DiscretizedLogistic", {"levels": 12}),
    "counts 2": ("DiscretizedLogistic --likelihood.levels 20", "AsFloat", "", {"levels": 20}),
    "counts 3": ("Categorical", "AsFloat", "Categorical", {"num_categories": 13}),
    "counts 4": ("Binomial --likelihood.total_count 16", "AsFloat", "", {"total_count": 16}),
    "counts 5": ("NegativeBinomial", "AsFloat", "NegativeBinomial", {"total_count": None}),
    "counts 6": ("NegativeBinomial --likelihood.total_count 5", "AsFloat", "", {"total_count": 5}),
    "counts 7": ("BetaBinomial", "AsFloat", "BetaBinomial", {"total_count": 12}),
    "counts 8": ("ZeroInflatedPoisson", "AsFloat", "ZeroInflatedPoisson", {}),
    "counts 9": ("Multinomial", "AsFloat", "Multinomial", {"num_words": None}),
    "counts 10": ("CategoricalSequence", "AsFloat", "", {"num_categories": 13, "padding": 0}),
    "counts 11": ("Gamma", "Dequantize", "Gamma", {}),
    "float counts 1": ("Binomial", "AsFloat", "Binomial", {"total_count": 12}),
    "float counts 2": ("Poisson", "AsFloat", "Poisson", {}),
    "bits 1": ("Categorical", "AsFloat", "Categorical", {"num_categories": 2}),
    "unit 1": ("Beta", "AsFloat", "Beta", {}),
    "counts with holes 1": ("Incomplete --likelihood.family Poisson", "AsFloat", "Incomplete", {}),
    "real 1": ("StudentT --likelihood.df 4", "AsFloat", "StudentT", {"df": 4}),
}


@pytest.mark.parametrize("case", SETTLED)
def test_data_and_likelihood_settle_the_rest(case: str) -> None:
    likelihood, observation, name, arguments = SETTLED[case]
    kind = case.rstrip("0123456789").strip()
    found = settled(kind, *(f"--likelihood {likelihood}".split() if likelihood else []))
    assert found["observation"]["class_path"].endswith(f".{observation}")
    assert found["likelihood"]["class_path"].endswith(name)
    taken = found["likelihood"].get("init_args", {})
    assert {key: taken.get(key) for key in arguments} == arguments


SYMBOLS = {
    "": {"num_symbols": 13, "padding": 0},
    "--likelihood.padding 3": {"num_symbols": 13, "padding": 3},
    "--encoder.num_symbols 20": {"num_symbols": 20, "padding": 0},
    "--likelihood.num_categories 15 --encoder.padding 2": {"num_symbols": 15, "padding": 2},
}


@pytest.mark.parametrize(
    ("options", "reader"), [*zip(SYMBOLS, ("Recurrent", "Transformer") * 2, strict=True)]
)
def test_an_encoder_reads_the_symbols_of_the_likelihood(options: str, reader: str) -> None:
    parts = f"--likelihood CategoricalSequence --encoder {reader}".split()
    found = settled("counts", *parts, *options.split())["encoder"]["init_args"]
    assert {name: found[name] for name in SYMBOLS[options]} == SYMBOLS[options]


def test_an_encoder_of_real_numbers_is_told_no_symbols() -> None:
    found = settled("bytes", "--encoder", "Recurrent")["encoder"].get("init_args", {})
    assert found.get("num_symbols") is None


FAMILIES = {
    "real with holes": ("Normal", {}),
    "counts with holes": ("Binomial", {"total_count": 12}),
    "bits with holes": ("Bernoulli", {}),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_incomplete_data_take_the_family_of_what_was_seen(kind: str) -> None:
    name, arguments = FAMILIES[kind]
    family = settled(kind, "--likelihood", "Incomplete")["likelihood"]["init_args"]["family"]
    assert family["class_path"].endswith(f".{name}")
    assert {key: family["init_args"][key] for key in arguments} == arguments


COLUMNS = ["Normal", "Bernoulli", "Categorical", "NegativeBinomial"]


@pytest.mark.parametrize("kind", ["table", "table with holes"])
def test_a_tables_columns_are_what_their_values_are(kind: str) -> None:
    if kind == "table":
        found = settled(kind, "--likelihood", "Columns")["likelihood"]["init_args"]
    else:
        options = ["--likelihood", "Incomplete", "--likelihood.family", "Columns"]
        found = settled(kind, *options)["likelihood"]["init_args"]["family"]["init_args"]
    names = [column["class_path"].rpartition(".")[2] for column in found["columns"]]
    assert names == COLUMNS
    assert found["columns"][2]["init_args"]["num_categories"] == 5


SPELLINGS = [
    "Laplace,Bernoulli,Categorical(5),Poisson",
    "[Laplace, Bernoulli, Categorical(num_categories=5), Poisson]",
    "[Laplace,Bernoulli,{class_path: Categorical, init_args: {num_categories: 5}},Poisson]",
]


@pytest.mark.parametrize(
    ("spelling", "separator"), [*zip(SPELLINGS, " = ", strict=True), (SPELLINGS[0], "=")]
)
def test_columns_are_named_as_a_list(spelling: str, separator: str) -> None:
    option = ["--likelihood.columns", spelling] if separator == " " else None
    given = option or [f"--likelihood.columns={spelling}"]
    found = settled("table", "--likelihood", "Columns", *given)["likelihood"]["init_args"]
    names = [column["class_path"].rpartition(".")[2] for column in found["columns"]]
    assert names == ["Laplace", "Bernoulli", "Categorical", "Poisson"]
    assert found["columns"][2]["init_args"]["num_categories"] == 5
    check_trusted({"likelihood": found}, set())


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("Laplac,Normal", "--likelihood.columns Laplac: .*did you mean Laplace"),
        ("Categorical(n=4)", "no argument 'n'.*num_categories"),
        ("Categorical(4", "expected a name"),
    ],
)
def test_a_column_that_cannot_be_says_why(columns: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        training_parser().parse(["--likelihood", "Columns", "--likelihood.columns", columns])


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prior", "likelihood", "posterior"])
def test_pyros_distributions_are_parts_by_their_names(role: str) -> None:
    path = named(role, "SoftLaplace")
    assert path == "pyro_vae.components.automatic.SoftLaplace"
    check_trusted({role: {"class_path": path}}, set())
    module, _, name = path.rpartition(".")
    part = getattr(__import__(module, fromlist=[name]), name)
    assert issubclass(part, Automatic)
    assert issubclass(part, Family)
    with pytest.raises(ValueError, match="did you mean SoftLaplace"):
        named(role, "SoftLaplac")
    with pytest.raises(ValueError, match="no such network"):
        named("network", "SoftLaplace")


def test_our_own_families_come_before_pyros() -> None:
    ours = {"Bernoulli", "Categorical", "ContinuousBernoulli", "Multinomial", "Normal"}
    assert ours < set(distribution_names())
    for name in ours:
        assert ".automatic." not in named("likelihood", name)


def test_names_inside_a_part_are_found_too() -> None:
    options = ["--likelihood", "Incomplete", "--likelihood.family"]
    family = training_parser().parse([*options, "Laplace"]).likelihood.arguments["family"]
    assert family.path == "pyro_vae.components.automatic.Laplace"
    with pytest.raises(ValueError, match="did you mean Laplace"):
        training_parser().parse([*options, "Laplac"])


# Bits per dimension -------------------------------------------------------------------------------

TEN_BITS = 10 + math.log2(256)
UNITS = {
    ("grey", "Bernoulli"): 10,
    ("bytes", "Normal"): TEN_BITS,
    ("bytes", "ContinuousBernoulli"): TEN_BITS,
    ("bytes", "LogitNormal"): TEN_BITS,
    ("bytes", "Beta"): TEN_BITS,
    ("bytes", "ContinuousBernoulli --observation Rescale"): None,
    ("bytes", "Categorical"): 10,
    ("bytes", "DiscretizedLogistic"): 10,
    ("bytes", "DiscretizedLogisticMixture"): 10,
    ("bytes", "Normal --observation AsFloat"): None,
    ("counts", "Poisson"): 10,
    ("counts", "NegativeBinomial"): 10,
    ("counts", "Multinomial"): None,
    ("counts", "Normal"): 10 + math.log2(13),
    ("real", "Normal"): None,
    ("table", "Columns"): None,
    ("unit", "Beta"): None,
    ("counts with holes", "Incomplete"): None,
}


@pytest.mark.parametrize(("kind", "likelihood"), UNITS)
def test_bits_are_those_of_the_stored_integers(kind: str, likelihood: str) -> None:
    tiny = ["--network.hidden", "[2]", "--latent", "2", "--device", "cpu"]
    config = training_parser().parse([*f"--likelihood {likelihood}".split(), *tiny])
    data = data_of(kind)
    settle(config, data)
    run = runs.open_run(config, data)
    found = results._bits_per_dim(run, SimpleNamespace(bits_per_dim=10))
    assert found == UNITS[kind, likelihood]


def test_what_is_settled_is_written_and_not_settled_again(tmp_path) -> None:
    found = settled("table with holes", "--likelihood", "Incomplete")
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(found))
    assert settled("table with holes", "--config", str(path)) == found


LEVELS = {
    "bytes": 255, "words of 12 bits": 4095, "words": 65535, "words as floats": 65535,
    "black and white": 1, "black and white as floats": 1,
    **{f"bytes as {kind}": 255 for kind in ("bytes", "integers", "words", "floats")},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEVELS)
def test_pixels_have_the_levels_of_their_bits_whatever_their_type(kind: str) -> None:
    data = data_of(kind)
    assert data.levels == LEVELS[kind]
    assert not data.train.x.is_floating_point()


MISSING = {
    "--missing -9999": "-9999", "--missing=-9999,-8888": "-9999,-8888",
    "--missing -9999,-8888": "-9999,-8888", "--missing -1e30": "-1e30", "--missing 0": "0",
    "--missing [-9999,-1]": "-9999,-1",
}  # fmt: skip


@pytest.mark.parametrize("typed", MISSING)
def test_codes_of_missing_values_are_read_as_typed_and_from_a_file(typed: str, tmp_path) -> None:
    parser = training_parser()
    config = parser.parse(typed.split())
    assert config.missing == MISSING[typed]
    (tmp_path / "run.yaml").write_text(as_text(as_dict(config)))
    again = training_parser().parse(["--config", str(tmp_path / "run.yaml")])
    wanted = [float(word) for word in MISSING[typed].split(",")]
    assert [float(word) for word in str(again.missing).split(",")] == wanted


@pytest.mark.parametrize("typed", ["--missing NA", "--missing=", "--missing inf"])
def test_what_is_no_code_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="--missing"):
        training_parser().parse(typed.split())


@pytest.mark.parametrize(("bits", "levels", "told"), [
    (8.1, 255, True), (7.9, 255, False), (17.0, 65535, True), (15.0, 65535, False),
    (99.0, None, False), (None, 255, False), (math.nan, 255, True),
])  # fmt: skip
def test_more_bits_than_the_data_are_stored_in_are_remarked_on(bits, levels, told) -> None:
    said = beyond_storage(bits, levels)
    assert bool(said) == told
    assert not told or "bits per dimension" in said[0]
