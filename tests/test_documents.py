"""Documents as data: sparse counts and texts, the words that columns count, and runs of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
import yaml
from command import train

from pyro_vae import datasets
from pyro_vae.cli import main
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.trained_run import load
from pyro_vae.datasets import Reading, from_arrays

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "20newsgroups"
COUNTS = np.random.default_rng(0).poisson(0.2, (60, 5)) + np.eye(5, dtype=int)[np.arange(60) % 5]
WORDS = ("apple", "bread", "cherry", "date", "egg")


def texts_of(counts: np.ndarray) -> list[str]:
    return [
        " ".join(w for w, n in zip(WORDS, row, strict=True) for _ in range(n)) for row in counts
    ]


def write_folder(folder: Path, *, words: tuple[str, ...] = WORDS, **parts: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for part, counts in parts.items():
        sparse.save_npz(folder / f"{part}.npz", sparse.csr_matrix(counts))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return folder


# Sparse counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix", "coo_array"])
def test_sparse_rows_are_counts_of_the_words_beside_them(tmp_path, kind):
    write_folder(tmp_path)
    sparse.save_npz(tmp_path / "bags.npz", getattr(sparse, kind)(COUNTS.astype(float)))
    data = datasets.load(tmp_path / "bags.npz")
    assert data.words == WORDS
    assert not data.train.x.is_floating_point()
    rows = torch.cat([part.x for part in data.parts.values()])
    assert Counter(map(tuple, rows.tolist())) == Counter(map(tuple, COUNTS.tolist()))
    for part in data.parts.values():
        np.testing.assert_array_equal(part.x, COUNTS[part.rows])


def test_a_folder_of_training_and_test_documents(tmp_path):
    """A tenth of the training documents is for validation, always the same one."""
    folder = write_folder(tmp_path / "two", train=COUNTS[:40], test=COUNTS[40:])
    data = datasets.load(folder)
    assert [len(part) for part in data.parts.values()] == [36, 4, 20]
    np.testing.assert_array_equal(data.test.x, COUNTS[40:])
    rows = torch.cat([data.train.x, data.validation.x]).tolist()
    assert Counter(map(tuple, rows)) == Counter(map(tuple, COUNTS[:40].tolist()))
    assert datasets.load(folder).fingerprint() == data.fingerprint()
    three = {"train": COUNTS[:30], "valid": COUNTS[30:40], "test": COUNTS[40:]}
    np.testing.assert_array_equal(
        datasets.load(write_folder(tmp_path / "three", **three)).validation.x, COUNTS[30:40]
    )


def test_documents_without_a_word_are_left_out_with_their_number(tmp_path):
    counts = np.concatenate([COUNTS, np.zeros((3, 5), int)])
    sparse.save_npz(tmp_path / "bags.npz", sparse.csr_matrix(counts))
    with pytest.warns(UserWarning, match=r"3 of 63 documents without a word left out"):
        data = datasets.load(tmp_path / "bags.npz")
    assert sum(map(len, data.parts.values())) == 60


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/20newsgroups is absent")
def test_the_documents_of_prodlda_are_those_that_were_published():
    data = datasets.load(SHARED)
    assert [len(part) for part in data.parts.values()] == [10_132, 1_126, 7_487]
    assert int(data.train.x.sum() + data.validation.x.sum()) == 991_493
    assert int(data.test.x.sum()) == 629_312
    assert len(data.words) == 1_995


# Texts --------------------------------------------------------------------------------------------


def test_words_of_texts_are_counted():
    data = from_arrays(texts_of(COUNTS), text=Reading(symbols="bag"))
    counted = {word: place for place, word in enumerate(data.words)}
    assert [*counted] == sorted(counted)
    for part in data.parts.values():
        for row, counts in zip(np.asarray(part.rows), part.x.tolist(), strict=True):
            found = {word: counts[place] for word, place in counted.items() if counts[place]}
            expected = {w: n for w, n in zip(WORDS, COUNTS[row], strict=True) if n and w in counted}
            assert found == expected


def test_words_are_those_of_the_training_texts_alone():
    texts = [f"same{n % 4} other{n % 3}" for n in range(30)]
    plain = from_arrays(texts, text=Reading(symbols="bag"))
    _, validation, test = (np.asarray(part.rows) for part in plain.parts.values())
    for row in (*validation, *test):
        texts[row] += " unseen"
    data = from_arrays(texts, text=Reading(symbols="bag"))
    assert data.words == plain.words
    assert "unseen" not in data.words


def test_which_words_are_counted():
    texts = [f"the cat saw {'dog' if n % 2 else 'cow'} rare{n}" for n in range(20)]
    few = from_arrays(texts, text=Reading(symbols="bag", min_documents=3))
    assert few.words == ("cow", "dog")  # of the others, each is in all documents, or in one
    given = Reading(symbols="bag", words=("cat", "the"), stop_words=None)
    assert from_arrays(texts, text=given).words == ("cat", "the")
    texts = [f"the and {'dog' if n % 2 else 'the of cow'}" for n in range(20)]
    english = from_arrays(texts, text=Reading(symbols="bag", stop_words="english"))
    assert english.words == ("cow", "dog")


def test_texts_without_a_word_that_is_counted_are_left_out():
    texts = [*texts_of(COUNTS), "!", "?!", ".."]
    with pytest.warns(UserWarning, match="no word that is counted: left out"):
        data = from_arrays(texts, text=Reading(symbols="bag"))
    assert all(bool(part.x.any(1).all()) for part in data.parts.values())
    assert {int(row) for part in data.parts.values() for row in part.rows} <= {*range(60)}


def test_a_file_of_words_says_what_is_counted(tmp_path):
    (tmp_path / "words.txt").write_text("egg\nzebra\n")
    (tmp_path / "docs.txt").write_text("\n".join([*texts_of(COUNTS), *["egg egg"] * 9]))
    with pytest.warns(UserWarning, match="documents have no word that is counted: left out"):
        data = datasets.load(
            tmp_path / "docs.txt", text=Reading("bag"), words=tmp_path / "words.txt"
        )
    assert data.words == ("egg", "zebra")
    for part in data.parts.values():
        assert bool(part.x.any(1).all())


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents")
    write_folder(path / "bags", train=COUNTS[:40], test=COUNTS[40:])
    for row, text in enumerate(texts_of(COUNTS)):
        place = path / "texts" / ("fruit" if row % 2 else "meal")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:02}.txt").write_text(text)
    return path


@pytest.fixture(scope="module")
def run(folder):
    """A run on sparse counts, which no test may change."""
    out = folder / "run"
    assert train("--model", "ProdLDA", "--data", folder / "bags", "--out", out) == 0
    return out


def test_a_run_tells_its_topics_by_their_words(folder, run, capsys):
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["lr"], stored["momentum"]) == (0.002, 0.99)
    parts = {role: stored[role]["class_path"].rpartition(".")[2]
             for role in ("prior", "likelihood", "encoder", "decoder")}  # fmt: skip
    assert parts == {
        "prior": "LaplaceDirichlet", "likelihood": "Multinomial", "encoder": "DocumentEncoder",
        "decoder": "ProductOfExperts",
    }  # fmt: skip
    found = json.loads((run / "results.json").read_text())
    assert [sorted(topic["words"]) for topic in found["topics"]] == [sorted(WORDS)] * 2
    assert sum(topic["share"] for topic in found["topics"]) == pytest.approx(1)
    mean = np.mean([topic["npmi"] for topic in found["topics"]])
    assert found["topic_npmi"] == pytest.approx(mean)
    of = "the 5 first words of each topic in 36 training documents, each of them one window"
    assert found["topic_npmi_of"] == of
    assert found["word_perplexity"] > 1
    page = (run / "report.html").read_text()
    assert " ".join(found["topics"][0]["words"]) in page
    assert of in page
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 topics" in shown
    assert "perplexity of words, at most" in shown


def test_a_program_states_its_settings_which_the_command_line_may_change(folder, capsys):
    line = ["train", "--model", "NVLDA", "--data", str(folder / "bags"), "--print_config"]
    assert main(line) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["decoder"]["class_path"].endswith(".TopicMixture")
    config = training_parser().parse(line[1:-1])
    settle(config, datasets.load(folder / "bags"))
    found = (config.lr, config.momentum, config.epochs, config.batch_size, config.latent)
    assert found == (0.005, 0.99, 200, 36, 50)  # a batch of all, which are fewer than 200
    given = ["--lr", "0.1", "--momentum", "0.5", "--epochs", "3", "--batch-size", "4"]
    config = training_parser().parse([*line[1:-1], *given])
    settle(config, datasets.load(folder / "bags"))
    assert (config.lr, config.momentum, config.epochs, config.batch_size) == (0.1, 0.5, 3, 4)
    config = training_parser().parse(["--data", str(folder / "bags")])
    settle(config, datasets.load(folder / "bags"))
    assert (config.lr, config.momentum, config.likelihood.name) == (0.001, 0.9, "Multinomial")


def test_a_run_of_counts_is_asked_for_other_counts(folder, run, tmp_path, capsys):
    rows = COUNTS[:3] + 500  # above all that the run has seen
    assert load(run).encode(rows).shape == (3, 2)
    reordered = write_folder(
        tmp_path / "other", words=WORDS[::-1], train=COUNTS[:40], test=COUNTS[40:]
    )
    assert main(["evaluate", str(run), "--data", str(reordered)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"column 0 of other counts 'egg', and that of the run 'apple'", said)


@pytest.mark.filterwarnings("default")
def test_a_run_of_texts_counts_its_words_in_other_texts(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--symbols", "bag", "--prior", "Dirichlet", "--prior.concentration", "0.5",
               "--posterior", "Dirichlet", "--num-samples", "2"]  # fmt: skip
    assert train("--model", "NVLDA", "--data", folder / "texts", *options, "--out", out) == 0
    trained = load(out)
    assert set(trained.words) <= set(WORDS)
    texts = ["egg egg bread", "cherry zebra", "date"]
    counts = [[text.split().count(word) for word in trained.words] for text in texts]
    torch.testing.assert_close(trained.encode(texts), trained.encode(np.array(counts)))
    (tmp_path / "new.txt").write_text("\n".join(["egg bread", "date cherry", "zebra"] * 3))
    assert main(["encode", str(out), "--data", str(tmp_path / "new.txt")]) == 0
    latents = np.load(out / "on-new.txt" / "latents.npy")
    assert len(latents) == 9  # with those that have no word
    (tmp_path / "one.txt").write_text("egg bread")
    assert main(["encode", str(out), "--data", str(tmp_path / "one.txt")]) == 0
    assert len(np.load(out / "on-one.txt" / "latents.npy")) == 1
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", str(tmp_path / "new.txt"), "--all"]) == 0
    assert "perplexity of words" in capsys.readouterr().out


# Mistakes -----------------------------------------------------------------------------------------


def save(path: Path, counts: np.ndarray) -> Path:
    sparse.save_npz(path, sparse.csr_matrix(counts))
    return path


def truncated(path: Path) -> Path:
    save(path, COUNTS)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def outside(path: Path) -> Path:
    """Rows whose columns are beyond their shape."""
    rows = sparse.csr_matrix(COUNTS)
    arrays = {name: getattr(rows, name) for name in ("data", "indices", "indptr")}
    shape = {"shape": np.array([60, 2]), "format": b"csr"}
    np.savez(path, **arrays, **shape)
    return path


MISTAKES = {
    "weights": (lambda p: save(p / "a.npz", COUNTS * 0.5), [], r"0.5 at row 0, column .* counts"),
    "negative": (lambda p: save(p / "a.npz", -COUNTS), [], r"-1 at row 0, column .* counts"),
    "no word": (lambda p: save(p / "a.npz", 0 * COUNTS), [], "no document has a word"),
    "damaged": (lambda p: outside(p / "a.npz"), [], "no sparse rows .* scipy.sparse.save_npz"),
    "another vocabulary": (
        lambda p: write_folder(p / "a", words=WORDS[:4], train=COUNTS, test=COUNTS[:9]),
        [], "vocab.txt.*: 4 words for the 5 columns of a",
    ),
    "a word twice": (
        lambda p: write_folder(p / "a", words=(*WORDS[:4], "date"), train=COUNTS, test=COUNTS[:9]),
        [], "line 5 is 'date', and so is line 4",
    ),
    "an empty line": (
        lambda p: write_folder(p / "a", words=(*WORDS[:4], " "), train=COUNTS, test=COUNTS[:9]),
        [], "line 5 is empty",
    ),
    "no such vocabulary": (
        lambda p: save(p / "a.npz", COUNTS), ["--vocabulary", "none.txt"], "none.txt",
    ),
    "no test documents": (
        lambda p: write_folder(p / "a", one=COUNTS, other=COUNTS), [], "one, other; expected",
    ),
    "one topic": (lambda p: save(p / "a.npz", COUNTS), ["--latent", "1"], "2 topics or more"),
    "no concentration": (
        lambda p: save(p / "a.npz", COUNTS), ["--prior.concentration", "0"],
        "--prior.concentration 0: give",
    ),
    "momentum": (lambda p: save(p / "a.npz", COUNTS), ["--momentum", "1"], "--momentum 1"),
    "options of bags": (
        lambda p: p / "b.txt", ["--stop-words", "english"], "--symbols bag makes of texts",
    ),
    "more documents than there are": (
        lambda p: p / "b.txt", ["--symbols", "bag", "--min-documents", "9"],
        "--min-documents 9: there are 8 training documents; give fewer",
    ),
    "no word is left": (
        lambda p: p / "b.txt", ["--symbols", "bag", "--min-documents", "8"],
        "no word is left to count in 8 training documents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tmp_path, capsys):
    (tmp_path / "b.txt").write_text("".join(f"word{n} alone{n}\n" for n in range(10)))
    make, options, said = MISTAKES[name]
    data = make(tmp_path)
    out = tmp_path / "run"
    assert train("--model", "ProdLDA", "--data", data, *options, "--out", out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert re.search(said, line), line
    assert not out.exists()


def test_a_folder_without_text_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = ["--model", "ProdLDA", "--symbols", "bag", "--data", tmp_path / "empty"]
    assert train(*words, "--out", tmp_path / "run") == 2
    assert "empty" in capsys.readouterr().err
