"""Molecules: their symbols, which rows are some, what samples are like, and a search for others."""

from __future__ import annotations

import importlib.util
import json
import lzma
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_vae
from pyro_vae import molecules
from pyro_vae.cli import main, molecular
from pyro_vae.datasets import Reading, Vocabulary, from_arrays, load
from pyro_vae.datasets.splitters import Selfies, Smiles, splitter
from pyro_vae.molecules import PropertyRegression, propose, recovery, sample_quality
from pyro_vae.molecules.quality import internal_diversity
from pyro_vae.molecules.search import climb

ZINC = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "zinc250k"
needs_zinc = pytest.mark.skipif(not ZINC.is_dir(), reason="../shared/data/zinc250k is absent")
needs_rdkit = pytest.mark.skipif(
    importlib.util.find_spec("rdkit") is None, reason="the extra molecules (rdkit) is not installed"
)
needs_selfies = pytest.mark.skipif(
    importlib.util.find_spec("selfies") is None,
    reason="the extra molecules (selfies) is not installed",
)
MOLECULES = [
    "CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C[C@@H](N)C(=O)O", "Clc1cc[nH]c1Br", "CC#N",
    "C[NH+](C)C", "F/C=C/F", "C1CC1CCCC2CC2", "O=S(=O)(N)c1ccccc1", "CN1CCC[C@H]1c1cccnc1", "CCS",
]  # fmt: skip


def zinc(number: int) -> list[str]:
    with lzma.open(ZINC / "zinc250k.smi.xz", "rt") as file:
        smiles = file.read().split()
    rows = np.random.RandomState(0).permutation(len(smiles))[:number]
    return [smiles[row] for row in rows]


# Symbols ----------------------------------------------------------------------------------------

SYMBOLS = {
    "Clc1cc[nH+]c1Br": "Cl c 1 c c [nH+] c 1 Br",
    "C%12CC%(123)C%12C%(123)": "C %12 C C %(123) C %12 C %(123)",
    "[13CH3:1][C@@H](N)C": "[13CH3:1] [C@@H] ( N ) C",
    r"F/C=C\F.[Na+]": r"F / C = C \ F . [Na+]",
    "[Fe++]Scs": "[Fe++] S c s",
    "[C@TH1](N)*": "[C@TH1] ( N ) *",
}


@pytest.mark.parametrize("smiles", SYMBOLS)
def test_smiles_are_split_into_atoms_bonds_and_rings(smiles):
    assert Smiles().split(smiles) == SYMBOLS[smiles].split()


NO_SMILES = {
    "C!C": r"'!C' at character 1",
    "CC l": r"' l' at character 2",
    "C[N": r"'\[N' at character 1",
    "C[NX9Q]C": r"'\[NX9Q\]C' at character 1",
    "C(C": "a branch is not closed",
    "C)C(": "a branch is not opened",
    "C1CC": "ring bond 1 is not closed",
    "C%12CC1": "ring bond 12 is not closed",
}


@pytest.mark.parametrize("text", NO_SMILES)
def test_what_is_no_smiles_is_told(text):
    with pytest.raises(ValueError, match=NO_SMILES[text]):
        Smiles().split(text)


@needs_rdkit
@needs_selfies
@needs_zinc
@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_molecules_come_back_from_their_symbols(number):
    smiles = zinc(number)
    same, other = Smiles(), Selfies()
    assert [same.join(same.split(each)) for each in smiles] == smiles
    written = [other.split(each) for each in smiles]
    back = [other.join(each) for each in written]
    assert [other.split(each) for each in back] == written
    mark, now = (molecules.canonical(molecules.parsed(each)) for each in (smiles, back))
    assert mark == now
    assert None not in mark


@needs_rdkit
@needs_selfies
def test_any_row_of_selfies_is_a_molecule():
    made = Selfies()
    vocabulary = Vocabulary.of([made.split(each) for each in MOLECULES], made)
    rows = np.random.RandomState(0).randint(1, len(vocabulary), (50, 20))
    rows[:, 0] = vocabulary.symbols.index("[C]")
    assert vocabulary.unknown in rows
    assert None not in molecules.parsed(vocabulary.decode(rows))
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize("package", ["selfies", "rdkit"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'pyro-vae\[molecules\]'"):
        splitter("selfies") if package == "selfies" else molecules.parsed(["C"])


# Rows -------------------------------------------------------------------------------------------


@needs_rdkit
@pytest.mark.filterwarnings("default:.*empty lines")
def test_rows_that_are_no_molecules_are_named_by_line(tmp_path, recwarn):
    path = tmp_path / "some.smi"
    wrong = ["C1CC ring", "", "CO(C)C valence", "c1cccc1 aromatic"]
    path.write_text("\n".join([f"{each} name {n}" for n, each in enumerate(MOLECULES * 3)] + wrong))
    first = 3 * len(MOLECULES) + 1
    with pytest.raises(ValueError, match="3 of 39 rows are no molecules") as caught:
        load(path)
    for line, text, why in (
        (first, "C1CC", "ring bond 1"),
        (first + 2, "CO(C)C", "valence"),
        (first + 3, "c1cccc1", "kekulize"),
    ):
        said = str(caught.value).split(f"line {line}, ")[1]
        assert said.startswith(repr(text))
        assert why in said.split(";")[0]
    recwarn.clear()
    kept = load(path, text=Reading(invalid="drop"))
    assert any("3 of 39 rows are no molecules" in str(each.message) for each in recwarn)
    assert kept.vocabulary.splitter == Smiles()
    texts = [each for part in kept.parts.values() for each in kept.vocabulary.decode(part.x)]
    assert sorted(texts) == sorted(MOLECULES * 3)


@needs_rdkit
def test_labels_follow_the_molecules_that_are_kept():
    data = {"x": ["CC", "C1", "CN", "CO(C)C", "NF"] * 2, "labels": list("abcde") * 2}
    with pytest.warns(UserWarning, match="row 1, 'C1'"):
        found = from_arrays(data, text=Reading(symbols="smiles", invalid="drop"))
    pairs = {
        (smiles, found.classes[label])
        for part in found.parts.values()
        for smiles, label in zip(found.vocabulary.decode(part.x), part.labels, strict=True)
    }
    assert pairs == {("CC", "a"), ("CN", "c"), ("NF", "e")}


def test_without_rdkit_only_what_is_no_smiles_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reading = Reading(symbols="smiles")
    kept = from_arrays([*MOLECULES * 2, "CO(C)C"], text=reading)
    assert sum(map(len, kept.parts.values())) == 25
    with pytest.raises(ValueError, match="1 of 25 rows"):
        from_arrays([*MOLECULES * 2, "C1CC"], text=reading)


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (Reading(symbols="smiles", max_length=3, longer="cut"), "a piece of SMILES is no molecule"),
        (Reading(symbols="smiles", max_length=3, longer="drop"), None),
    ],
)
def test_longer_molecules_are_dropped_not_cut(reading, said):
    if said is None:
        assert from_arrays(MOLECULES * 2, text=reading).event_shape == (3,)
        return
    with pytest.raises(ValueError, match=said):
        from_arrays(MOLECULES, text=reading)


@pytest.mark.parametrize("suffix", [".smi.gz", ".smi.xz"])
def test_a_damaged_file_is_told(tmp_path, suffix):
    path = tmp_path / f"some{suffix}"
    path.write_bytes(b"\xfd7zXZ\x00\x00\x04")
    with pytest.raises(ValueError, match="truncated or corrupt"):
        load(path)


# What samples are like ----------------------------------------------------------------------------


@needs_rdkit
def test_shares_are_those_of_a_count_by_hand(capfd):
    samples = ["CCO", "OCC", "C1CC", "CC#N", "c1ccccc1", "CO(C)C", "CCO", ""]
    found = sample_quality(samples, ["C1=CC=CC=C1", "CCS", "C(", "OCC"], ["CCO", "CCN"], at=(2, 5))
    assert found.valid == 5 / 8
    assert found.valid.standard_error == pytest.approx(math.sqrt(5 / 8 * 3 / 8 / 8))
    assert found.unique == 3 / 5
    assert found.unique_at_k == {2: 0.5, 5: 0.6}
    assert found.novel == 1 / 3  # CC#N; the others are written in another way among the data
    assert capfd.readouterr() == ("", "")  # rdkit says nothing of what is no molecule
    nothing = sample_quality(["C("], [], ["C"])
    assert nothing.valid == 0
    assert math.isnan(nothing.unique)


@needs_rdkit
def test_properties_and_their_distance_are_those_of_rdkit_and_of_sorted_values():
    from rdkit.Chem import QED, Crippen, DataStructs, rdFingerprintGenerator

    found = molecules.parsed(MOLECULES)
    log_p = molecules.properties(found, "logP")
    np.testing.assert_allclose(log_p, [Crippen.MolLogP(each) for each in found])
    np.testing.assert_allclose(
        molecules.properties(found, "5 QED - SA") + molecules.properties(found, "SA"),
        [5 * QED.qed(each) for each in found],
    )
    assert (molecules.properties(found, "SA") >= 1).all()
    other = MOLECULES[::-1][:6] * 2
    quality = sample_quality(MOLECULES, [], other)
    theirs = np.sort(molecules.properties(molecules.parsed(other), "logP"))
    assert quality.distance["logP"] == pytest.approx(np.abs(np.sort(log_p) - theirs).mean())
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    bits = [generator.GetFingerprint(each) for each in found]
    alike = np.array([DataStructs.BulkTanimotoSimilarity(each, bits) for each in bits])
    assert internal_diversity(molecules.fingerprints(found)) == pytest.approx(1 - alike.mean())
    with pytest.raises(ValueError, match="known are logP"):
        molecules.properties(found, "weight")


@needs_rdkit
def test_molecules_that_come_back_are_counted_by_symbols_and_by_molecule():
    found = recovery(["CCO", "c1ccccc1", "CN", "CC"], ["OCC", "c1ccccc1", "C(", "CN"])
    assert (found.same_smiles, found.same_molecule, found.valid) == (0.25, 0.5, 0.75)


@needs_rdkit
def test_a_picture_has_a_panel_for_each_molecule():
    from PIL import Image

    picture = molecules.grid([*MOLECULES[:4], "C(("], ["one"], columns=3)
    assert picture.startswith(b"\x89PNG")
    import io

    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    assert pixels.shape == (400, 780)
    panels = pixels.reshape(2, 200, 3, 260).min(axis=(1, 3))
    assert (panels < 200).ravel().tolist() == [True] * 5 + [False]


# The search ---------------------------------------------------------------------------------------


def process(seed: int = 0) -> tuple[PropertyRegression, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    z = 2 + 3 * torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = (z[:, 0] + z[:, 1].sin() + 0.1 * torch.randn(60, generator=generator)).numpy()
    return PropertyRegression(z[:40], y[:40]), z, y


def test_the_regression_is_scikit_learns_and_has_its_gradient():
    regression, z, y = process()
    new = z[40:].clone().requires_grad_()
    mean, scale = regression(new)
    inside = ((z[40:] - z[:40].mean(0)) / z[:40].std(0)).numpy()
    theirs, with_noise = regression.process.predict(inside, return_std=True)
    noise = regression.process.kernel_.k2.noise_level
    of_y = y[:40].std(ddof=1)
    np.testing.assert_allclose(mean.detach(), theirs * of_y + y[:40].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        scale.detach(), of_y * np.sqrt(with_noise**2 - noise), rtol=1e-5, atol=1e-7
    )
    assert torch.autograd.gradcheck(lambda at: regression(at), (new[:2],))
    assert regression.accuracy(z[40:], y[40:]).r_squared > 0.8


def test_the_climb_raises_what_it_climbs():
    regression, z, _ = process()
    for sign in (1, -1):
        path = climb(regression, z[:5], sign=sign, caution=0.5, num_steps=30, step=0.05)
        torch.testing.assert_close(path[0], z[:5])
        heights = []
        for at in path:
            mean, scale = regression(at)
            heights.append(sign * mean - 0.5 * scale)
        assert (heights[0] < heights[1]).all()
        assert (heights[1] < heights[2]).all()


@needs_rdkit
def test_proposals_are_new_valid_different_and_in_order():
    regression, z, _ = process()
    words = iter([MOLECULES[:5], ["CCO", "C(", "CCS", "OCC", "CC#N"], ["CCCC"] * 5])
    found = propose(regression, z[:5], lambda at: next(words), name="logP", known=["OCC", "CC#N"])
    smiles = [each.smiles for each in found]
    assert sorted(smiles) == sorted(
        each for each in molecules.canonical(molecules.parsed([*MOLECULES[1:5], "CCS", "CCCC"]))
    )
    predicted = [each.predicted for each in found]
    assert predicted == sorted(predicted, reverse=True)
    for each in found:
        assert each.computed == molecules.properties(molecules.parsed([each.smiles]), "logP")[0]


# A run ------------------------------------------------------------------------------------------


@needs_rdkit
@needs_selfies
@pytest.mark.pictures
def test_a_run_of_molecules_shows_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(molecular, "_NUM_SAMPLES", 20)
    path, out = tmp_path / "some.smi", tmp_path / "run"
    path.write_text("\n".join(MOLECULES * 3))
    words = ["--latent", "2", "--epochs", "1", "--num-samples", "2", "--engine", "eager"]
    words += ["--likelihood", "AutoregressiveSequence(network=CausalRecurrent(hidden=8))"]
    words += ["--encoder", "Recurrent(hidden=8)", "--symbols", "selfies"]
    assert main(["train", "--data", str(path), *words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["valid_share"] > 0.5  # all, but for that of no atom
    assert "samples that are molecules" in said
    assert "property_distance" not in said
    assert set(results["property_distance"]) == {"logP", "QED", "SA"}
    rows = [line for line in said.splitlines() if "mutual" in line or "are molecules" in line]
    assert "mutual information" in rows[0]  # beside each other
    for name in ("samples", "reconstructions", "between"):
        assert (out / "pictures" / f"molecules_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Molecules drawn from the model" in (out / "report.html").read_text()
    search(out)


def search(out: Path) -> None:
    """Run the search of the README on a run."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n([^`]*molecules\.propose.*?)^```", text, re.M | re.S)
    names: dict = {"run": pyro_vae.load(out), "smiles": MOLECULES * 2}
    exec(code.replace("1000", "12").replace("100", "3"), names)
    assert not {each.smiles for each in names["found"]} & {*MOLECULES}


def test_a_run_without_rdkit_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    data = from_arrays(MOLECULES * 2, text=Reading(symbols="smiles"))
    run = SimpleNamespace(data=data)
    with pytest.warns(UserWarning, match=r"rdkit.* is not installed: pip install 'pyro-vae\[mol"):
        assert molecular.numbers(run) == {}
    assert molecular.draw(run, Path()) == []


def test_a_collapsed_model_does_not_look_good():
    good = {"valid_share": 0.97, "same_molecule_share": 0.4}
    collapsed = {"valid_share": 0.97, "same_molecule_share": 0.0}
    assert molecular.said(good) == []
    assert "97.0 % of the samples are molecules says nothing" in molecular.said(collapsed)[0]
    assert molecular.said({}) == []
