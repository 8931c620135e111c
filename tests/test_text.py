"""Text as data: symbols and vocabularies, files, and a run from the corpus to sampled sentences."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_vae
from pyro_vae import VAE, datasets, evaluation, fit
from pyro_vae.cli import main
from pyro_vae.cli.data_defaults import settle
from pyro_vae.cli.data_loading import load_data
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.parser import as_dict, as_text, components_built
from pyro_vae.components import CategoricalSequence, Recurrent, RecurrentDecoder
from pyro_vae.datasets import Reading, Vocabulary, from_arrays, load
from pyro_vae.datasets.splitters import Characters, Splitter, Tokenizer, Words, splitter
from pyro_vae.report.texts import TextTable, as_html

TEXTS = {
    "latin": ["The cat sat.", "A dog ran!", "", "the end, (no more)"],
    "marks": ['He said: "(don\'t)".', "3.5 % of $5, U.S. <unk> a<b>c", "... --- ?!", "([{x}])"],
    "scripts": ["שלום עולם", "नमस्ते दुनिया।", "你好，世界。", "Straße naïve e\u0301"],
    "symbols": ["👩\u200d🚀 go", "tab\tand\nline", "\x1b[31mred\x1b[0m", "\ud800 alone"],
}


@dataclass(frozen=True)
class Pairs(Splitter):
    """Letters, of which two small ones may be one symbol: a splitter without unknown symbols."""

    name = "pairs"
    kind = "pairs"

    def split(self, text: str) -> list[str]:
        found = re.findall("Cl|Br|.", text)
        if "?" in found:
            raise ValueError(f"{text!r} is no molecule")
        return found

    def join(self, symbols) -> str:
        return "".join(symbols)


def bpe() -> Tokenizer:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["[UNK]"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator([text for texts in TEXTS.values() for text in texts[:2]], trainer)
    made.enable_padding(length=50)
    made.enable_truncation(3)
    return Tokenizer(made.to_str())


SPLITTERS = {"characters": Characters, "words": Words, "pairs": Pairs, "tokenizer": bpe}
LOSSLESS = ("characters", "tokenizer")


def noise(seed: int) -> str:
    letters = np.array([*"ab1 .,(<>'\"-%\u0301é\u05d0", "<unk>", "  "])
    return "".join(np.random.default_rng(seed).choice(letters, 12))


@pytest.mark.parametrize("name", SPLITTERS)
def test_symbols_put_together_and_split_again_are_the_same(name):
    made = SPLITTERS[name]()
    texts = [t for kind in TEXTS.values() for t in kind if "\ud800" not in t and "?" not in t]
    texts += [noise(seed) for seed in range(200)]
    for text in texts:
        symbols = made.split(text)
        assert made.split(made.join(symbols)) == symbols
        assert "" not in symbols


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_what_is_encoded_is_decoded(name, kind):
    made = SPLITTERS[name]()
    texts = [t for t in TEXTS[kind] if name == "characters" or "\ud800" not in t]
    vocabulary = Vocabulary.of([made.split(text) for text in texts], made)
    length = max(len(made.split(text)) for text in texts) + 1
    rows = vocabulary.encode(texts, length)
    assert rows.shape == (len(texts), length)
    assert vocabulary.decode(rows) == texts
    assert vocabulary.decode(torch.from_numpy(rows).float()) == texts
    assert vocabulary.decode([[2, 0, 3], [0, 2, 2]]) == [made.join(vocabulary.symbols[2:3]), ""]
    ends = (rows == 0).argmax(1)  # one place is left in each
    assert all(
        (row[end:] == 0).all() and (row[:end] > 0).all()
        for row, end in zip(rows, ends, strict=True)
    )


def test_words_are_written_as_people_write_them():
    words = Words()
    assert words.split('He said: "(Don\'t!)" <unk>.') == [
        "He", "said", ":", '"', "(", "Don't", "!", ")", '"', "<unk>", ".",
    ]  # fmt: skip
    assert words.join(words.split("Well,   (yes)  it is .")) == "Well, (yes) it is."


def vocabulary_of(name: str) -> Vocabulary:
    made = SPLITTERS[name]()
    rows = [made.split(text) for text in TEXTS["latin"] * 2]
    return Vocabulary.of(rows, made, most=8)


@pytest.mark.parametrize("name", ["characters", "words", "tokenizer"])
def test_a_vocabulary_is_stored_as_text_and_read_again(name):
    before = vocabulary_of(name)
    after = Vocabulary.from_json(before.to_json())
    assert after == before
    rows = before.encode(TEXTS["latin"], 30)
    assert np.array_equal(after.encode(TEXTS["latin"], 30), rows)
    assert after.decode(rows) == before.decode(rows)


@pytest.mark.parametrize("broken", ["{}", '{"splitter": "x", "definition": null}', "nothing"])
def test_what_is_no_vocabulary_is_refused(broken):
    with pytest.raises(ValueError, match=r"no vocabulary|no symbols are called"):
        Vocabulary.from_json(broken)


@pytest.mark.parametrize("name", ["characters", "words", "tokenizer"])
def test_the_most_frequent_symbols_are_kept_and_others_are_unknown(name):
    made = SPLITTERS[name]()
    rows = [made.split(text) for text in [*TEXTS["latin"], "the the the cat"]]
    counts = Counter(symbol for row in rows for symbol in row)
    vocabulary = Vocabulary.of(rows, made, most=4)
    kept = set(vocabulary.symbols[2:])
    assert len(kept) == 4
    assert min(counts[s] for s in kept) >= max(n for s, n in counts.items() if s not in kept)
    encoded = vocabulary.numbered(rows, 40)
    for row, numbers in zip(rows, encoded, strict=True):
        for symbol, number in zip(row, numbers, strict=False):
            assert number == (vocabulary.symbols.index(symbol) if symbol in kept else 1)
    assert vocabulary.unknown == 1
    assert not vocabulary.is_whole
    assert made.unknown in vocabulary.decode(encoded)[3]


# Data sets ----------------------------------------------------------------------------------------

CORPUS = [f"{a} {b} {c}." for a in ("the", "a") for b in ("cat", "dog", "owl") for c in
          ("sat", "ran", "ate", "lay", "is")]  # fmt: skip


def rare(place: str) -> datasets.Dataset:
    """Return a data set in which one row of a part holds a symbol that no other has."""
    plain = from_arrays(CORPUS)
    row = int(plain.parts[place].rows[0])
    return from_arrays([f"{text}@" if n == row else text for n, text in enumerate(CORPUS)])


def test_the_vocabulary_is_that_of_the_training_rows_alone():
    data = from_arrays(CORPUS)
    seen = {c for row in data.train.rows.tolist() for c in CORPUS[row]}
    assert {*data.vocabulary.symbols} == seen | {"", "\ufffd"}
    assert "@" in rare("train").vocabulary.symbols
    for place in ("validation", "test"):
        with pytest.warns(UserWarning, match="1 of 30 texts hold '@', which no training row has"):
            found = rare(place)
        assert found.vocabulary == data.vocabulary
        assert found.parts[place].x[0].tolist().count(found.vocabulary.unknown) == 1


def test_rows_are_the_texts_of_their_part():
    labels = np.array(["x", "y"])[np.arange(30) % 2]
    for given in (
        (CORPUS, labels), [*zip(CORPUS, labels, strict=True)], {"text": CORPUS, "label": labels},
        [{"text": t, "label": y} for t, y in zip(CORPUS, labels, strict=True)],
        (np.array(CORPUS), labels), [np.array(CORPUS, object), labels],
    ):  # fmt: skip
        data = from_arrays(given)
        for part in data.parts.values():
            rows = part.rows.tolist()
            assert data.vocabulary.decode(part.x) == [CORPUS[row] for row in rows]
            assert [data.classes[n] for n in part.labels.tolist()] == [labels[row] for row in rows]
    assert data.levels == len(data.vocabulary) - 1
    assert data.event_shape == (max(map(len, CORPUS)),)


def test_parts_that_are_given_are_kept():
    data = from_arrays({"train": ["ab", "ba", "bb"], "valid": ["a"], "test": ["b"]})
    assert data.vocabulary.decode(data.train.x) == ["ab", "ba", "bb"]
    assert data.vocabulary.decode(data.test.x) == ["b"]


def test_longer_texts_are_refused_cut_or_dropped():
    lengths = {text: len(text) for text in CORPUS}
    with pytest.raises(ValueError, match=r"15 of 30 texts .* 10 .*, the longest has 12") as caught:
        from_arrays(CORPUS, text=Reading(max_length=10))
    assert "longer='cut'" in str(caught.value)
    cut = from_arrays(CORPUS, text=Reading(max_length=10, longer="cut"))
    assert cut.vocabulary.decode(cut.train.x) == [CORPUS[n][:10] for n in cut.train.rows.tolist()]
    labels = [f"{len(text)}" for text in CORPUS]
    drop = from_arrays(CORPUS, labels, text=Reading(max_length=11, longer="drop"))
    short = [text for text in CORPUS if lengths[text] <= 11]
    for part in drop.parts.values():
        texts = drop.vocabulary.decode(part.x)
        assert texts == [short[row] for row in part.rows.tolist()]
        assert [drop.classes[n] for n in part.labels.tolist()] == [f"{len(t)}" for t in texts]


def test_a_longest_row_far_beyond_the_others_is_told():
    with pytest.warns(UserWarning, match=r"padded to 200 characters, though 98% have 12 or fewer"):
        from_arrays([*CORPUS * 4, "t" * 200])
    with pytest.warns(UserWarning, match=r"texts of up to 3,000 characters, for which networks"):
        from_arrays(["ab" * 1500] * 3)


def test_words_that_occur_once_are_unknown():
    data = from_arrays([*CORPUS, "the rare cat sat."], text=Reading("words"))
    words = Counter(
        w
        for n in data.train.rows.tolist()
        for w in Words().split([*CORPUS, "the rare cat sat."][n])
    )
    assert {*data.vocabulary.symbols} == {"", "<unk>"} | {w for w, n in words.items() if n > 1}


BAD = {
    "missing": ([*CORPUS[:5], None], {}, "row 5 is missing"),
    "bytes": ([b"a", b"b", b"c"], {}, "row 0 is a bytes, the first is text; decode it"),
    "empty": (["", "", ""], {}, "all texts are empty"),
    "one": (["only"], {}, "one datum"),
    "numbers": (["1", "2.5", "3"], {}, "numbers as text"),
    "no texts": (np.ones((4, 2)), {"text": Reading("words")}, "holds no texts"),
    "mixed parts": ({"train": CORPUS, "valid": [[1]], "test": ["a"]}, {}, "holds no texts"),
    "strange": ([*CORPUS[:3], "a?"], {"text": Reading(Pairs())}, "row 3: 'a?' is no molecule"),
    "no words twice": (["a b", "c d", "e f"], {"text": Reading("words")}, "occurs 2 times"),
    "no file": (CORPUS, {"text": Reading("gone.json")}, "words, smiles, selfies nor a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_texts_are_one_line(case):
    x, options, said = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(said)) as caught:
        from_arrays(x, **options)
    assert "\n" not in str(caught.value)


def test_symbols_outside_a_vocabulary_without_an_unknown_one_are_named():
    texts = ["CCl", "ClC", "CC", "ClCl", "CClC", "CCC", "ClClC", "CCCC", "CCCl", "ClCC"]
    row = int(from_arrays(texts, text=Reading(Pairs())).test.rows[0])
    texts[row] = "CBr"
    with pytest.raises(ValueError, match="1 of 10 texts hold 'Br', not among the 2 pairs"):
        from_arrays(texts, text=Reading(Pairs()))


# Files --------------------------------------------------------------------------------------------


def test_line_ends_and_byte_order_marks_make_no_difference(tmp_path):
    text = "\n".join(CORPUS)
    plain = _written(tmp_path / "a.txt", text.encode())
    for content in (
        text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode(), f"{text}\n".encode(),
        text.replace("\n", "\r").encode(),
    ):  # fmt: skip
        found = load(_written(tmp_path / "a.txt", content))
        assert found.vocabulary.decode(found.test.x) == [CORPUS[n] for n in found.test.rows]
    assert load(plain).name == "a.txt"


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_empty_lines_are_left_out_with_a_count(tmp_path):
    path = _written(tmp_path / "a.txt", "\n\n \t\n".join(CORPUS).encode())
    with pytest.warns(UserWarning, match="58 empty lines of 88 are left out"):
        data = load(path)
    assert sum(map(len, data.parts.values())) == 30


def test_a_column_of_a_table_is_read_with_its_labels(tmp_path):
    texts = [f'{text} "so", she\nsaid' for text in CORPUS]
    cells = [f'"{t.replace(chr(34), 2 * chr(34))}"' for t in texts]
    for name, mark in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        rows = [
            f"{n}{mark}{cell}{mark}{'' if n == 4 else 'pn'[n % 2]}" for n, cell in enumerate(cells)
        ]
        path = _written(
            tmp_path / name, "\r\n".join([mark.join(["id", "say", "how"]), *rows]).encode()
        )
        data = load(path, text=Reading(column="say", label_column="how"))
        for part in data.parts.values():
            assert data.vocabulary.decode(part.x) == [texts[n] for n in part.rows.tolist()]
            labels = [-1 if n == 4 else 1 - n % 2 for n in part.rows.tolist()]
            assert part.labels.tolist() == labels
        assert data.classes == ("n", "p")


def test_folders_are_labels_or_splits(tmp_path):
    for n, text in enumerate(CORPUS):
        _written(tmp_path / "a" / "xy"[n % 2] / f"{n:02}.txt", f"{text}\r\nmore\n".encode())
        part = ("train", "valid", "test")[n % 3]
        _written(tmp_path / "b" / part / "xy"[n % 2] / f"{n}", text.encode())
    labelled, split = load(tmp_path / "a"), load(tmp_path / "b")
    assert labelled.classes == split.classes == ("x", "y")
    assert {t for p in labelled.parts.values() for t in labelled.vocabulary.decode(p.x)} == {
        f"{text}\nmore" for text in CORPUS
    }
    assert {*split.vocabulary.decode(split.validation.x)} == {*CORPUS[1::3]}


def test_files_named_as_splits_have_a_text_a_line(tmp_path):
    for part, texts in zip(
        ("train", "valid", "test"), (CORPUS[:20], CORPUS[20:25], CORPUS[25:]), strict=True
    ):
        _written(tmp_path / f"ptb.{part}.txt", "\n".join(texts).encode())
    data = load(tmp_path, text=Reading("words", max_symbols=50))
    assert data.vocabulary.decode(data.test.x) == CORPUS[25:]


FILES = {
    "latin": ("a.txt", "für\nzwölf".encode("latin1"), "line 1, byte 1 of the file is 0xfc"),
    "later": ("a.txt", b"\xef\xbb\xbfone\ntwo\nth\xffee", "line 3, byte 13 of the file is 0xff"),
    "utf16": ("a.txt", "a\nb\nc".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    "zeros": ("a.txt", b"a\nb\0\n", "line 2 holds a zero byte, at byte 3"),
    "one line": ("a.txt", b"only\n", "a.txt: one datum"),
    "empty": ("a.txt", b"", "no text in it"),
    "blank": ("a.txt", b"\n \n", "no text in it: 2 empty lines"),
    "suffix": ("a.doc", b"abc", "expected a .npy or .npz file of numbers, a .txt, .csv or .tsv"),
    "table": ("a.csv", b"id,say\n1,a\n1,b\n2,c\n", "names the column of its texts, one of id, say"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_one_line(tmp_path, case):
    name, content, said = FILES[case]
    reading = Reading("words") if name.endswith(".csv") else None  # without one, it is a table
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load(_written(tmp_path / name, content), text=reading)
    assert "\n" not in str(caught.value)


def test_what_texts_have_not_is_refused(tmp_path):
    path = _written(tmp_path / "a.txt", "\n".join(CORPUS).encode())
    for folder in (path, path.parent):
        with pytest.raises(ValueError, match=r"label_column=y: .* is no table; leave it out"):
            load(folder, text=Reading(label_column="y"))
    with pytest.raises(ValueError, match=r"missing=-9: .* holds texts, which have none"):
        load(path, missing=[-9])
    with pytest.raises(ValueError, match="longer=cut: max_length says longer than what"):
        Reading(longer="cut")
    for name, said in (("digits", "digits holds no texts"), (str(tmp_path / "x.npy"), "no texts")):
        np.save(tmp_path / "x.npy", np.ones((5, 2)))
        with pytest.raises(ValueError, match=f"symbols: .*{said}|symbols.*{said}|text=.*{said}"):
            load(name, text=Reading("words"))


TABLES = {
    "no column": (b"id,say\n1,a\n", "has no column of that name: it has id, say"),
    "two columns": (b"text,text\n1,a\n", "two columns of that name"),
    "ragged": (b"id,text\n1,a\n2,b,c\n", "ends in line 3 has another number of cells than the 2"),
    "quotes": (b'id,text\n1,"a\n', "no table of cells and commas at line 2"),
    "header alone": (b"id,text\n", "no texts"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_tables_are_one_line(tmp_path, case):
    content, said = TABLES[case]
    path = _written(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load(path, text=Reading(column="text"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_is_read_from_its_file(tmp_path, monkeypatch):
    path = _written(tmp_path / "tokenizer.json", bpe().text.encode())
    data = from_arrays(CORPUS, text=Reading(path))
    assert data.vocabulary.decode(data.train.x) == [CORPUS[n] for n in data.train.rows.tolist()]
    made = bpe()
    assert data.vocabulary.symbols == ("", *made.own)
    assert data.vocabulary.symbols[data.vocabulary.unknown] == "[UNK]"
    assert all(data.vocabulary.decode([[n]]) == [made.join([s])] for n, s in enumerate(made.own, 1))
    with pytest.warns(UserWarning, match=r"not among the 10 known: '.UNK.'"):
        few = from_arrays(CORPUS, text=Reading(path, max_symbols=9))
    assert len(few.vocabulary) == 11
    path.write_text(json.dumps({"model": "none"}))
    with pytest.raises(ValueError, match=r"tokenizer.json'?: no tokenizer of the library"):
        splitter(path)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'pyro-vae[text]'")):
        splitter(path)


# A run --------------------------------------------------------------------------------------------

SMALL = [
    "--encoder", "Recurrent(hidden=4,embedding=3)", "--decoder", "MLP(hidden=[4])",
    "--likelihood", "AutoregressiveSequence(num_context=3,network=CausalRecurrent(hidden=4))",
    "--latent", "2", "--epochs", "2", "--batch-size", "8", "--num-samples", "3", "--device", "cpu",
    "--engine", "eager",
]  # fmt: skip
MARKED = [text.replace("owl", "<b>\x1b[1m") for text in CORPUS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("text")
    corpus = _written(place / "corpus.txt", "\n".join(MARKED).encode())
    words = ["--data", str(corpus), "--out", str(place / "run"), "--max-length", "16"]
    assert main(["train", *SMALL, *words]) == 0
    return place


def test_a_run_says_its_texts_and_its_numbers_by_symbol(folder, capsys):
    assert main(["evaluate", str(folder / "run")]) == 0
    said = capsys.readouterr().out
    assert "Drawn from the model" in said
    assert "nats per symbol" in said
    assert "\x1b" not in said
    results = json.loads((folder / "run/results.json").read_text())
    test = load(folder / "corpus.txt").test.rows.tolist()
    symbols = np.mean([min(len(MARKED[row]) + 1, 16) for row in test])
    assert results["symbols_per_datum"] == pytest.approx(symbols)
    assert results["nats_per_symbol"] == pytest.approx(-results["test_elbo_nats"] / symbols)
    assert np.log(results["perplexity"]) == pytest.approx(results["nats_per_symbol"])
    page = (folder / "run/report.html").read_text()
    assert all(f">{MARKED[row]}<".replace("<b>\x1b", "&lt;b&gt;\ufffd") in page for row in test)


def test_a_run_is_evaluated_and_asked_from_anywhere_without_its_data(folder, tmp_path, monkeypatch):
    moved = folder / "corpus.txt"
    monkeypatch.chdir(tmp_path)
    hidden = moved.rename(folder / "hidden.txt")
    try:
        assert main(["sample", str(folder / "run"), "--num", "5"]) == 0
        texts = (folder / "run/samples.txt").read_text().splitlines()
        run = pyro_vae.load(folder / "run")
        assert texts == [text.replace("\n", "\\n") for text in run.sample(5)]
        found = run.log_prob(["the cat sat.", "a dog ran."], num_samples=4).log_p
        rows = run.vocabulary.encode(["the cat sat.", "a dog ran."], 16)
        torch.testing.assert_close(found, run.log_prob(rows, num_samples=4).log_p)
        torch.testing.assert_close(run.encode(["a dog ran."]), run.encode(rows[1:]))
        assert run.decode(run.encode(MARKED)) == run.reconstruct(MARKED)
        likeliest = ["--num", "5", "--temperature", "0", "--nucleus", "0.9"]
        assert main(["sample", str(folder / "run"), *likeliest]) == 0
        texts = (folder / "run/samples.txt").read_text().splitlines()
        assert texts == run.sample(5, temperature=0) != run.sample(5)
        with pytest.raises(ValueError, match=r"temperature=0: means are not drawn"):
            run.sample(5, temperature=0, stochastic=False)
        with pytest.raises(ValueError, match=r"1 of 1 texts are longer than 16 characters"):
            run.encode(["the longest cat of all"])
        with pytest.raises(ValueError, match="give a list of texts"):
            run.encode("a dog ran.")
    finally:
        hidden.rename(moved)


def test_a_likelihood_of_other_data_is_refused_by_name(tmp_path, capsys):
    corpus = _written(tmp_path / "corpus.txt", "\n".join(CORPUS).encode())
    words = ["--likelihood", "Bernoulli", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", str(corpus), *words]) == 2
    assert "--likelihood Bernoulli: corpus.txt holds texts, rows of" in capsys.readouterr().err


def test_a_run_reads_other_files_than_its_own_table(tmp_path):
    """By its length, though none was asked for, and by no column where there are none."""
    vocabulary = Vocabulary.of([[*"abc"]], Characters())
    path = _written(tmp_path / "new.txt", b"abc\ncab\nabcabc\na")
    config = SimpleNamespace(
        missing=None, model=None, data_weights=None, data_root=tmp_path, max_length=None,
        longer="cut", text_column="review", label_column="stars",
    )  # fmt: skip
    read = load_data(path, config, vocabulary=vocabulary, length=4)
    rows = torch.cat([part.x for part in read.parts.values()])
    assert sorted(vocabulary.decode(rows)) == ["a", "abc", "abca", "cab"]


@pytest.mark.filterwarnings("default:.*no training row has")
def test_new_texts_are_read_by_the_runs_vocabulary(folder, tmp_path, capsys):
    other = _written(tmp_path / "new.txt", "\n".join(["a öat sat."] * 3 + [MARKED[0] * 3]).encode())
    run, words = str(folder / "run"), ["--data", str(other)]
    assert main(["reconstruct", run, *words]) == 2
    said = capsys.readouterr().err
    assert "1 of 4 texts are longer than 16 characters, the longest has 36" in said
    assert main(["reconstruct", run, *words, "--longer", "cut"]) == 0
    assert "hold 'ö', which no training row has" in capsys.readouterr().err
    assert len((folder / "run/on-new.txt/reconstructions.txt").read_text().splitlines()) == 4
    table = tmp_path / "scores.csv"
    score = ["score", run, *words, "--longer", "cut", "--num-samples", "2", "--out", str(table)]
    assert main(score) == 0
    assert "nats: a \ufffdat sat." in capsys.readouterr().out
    assert len(table.read_text().splitlines()) == 5


@pytest.mark.filterwarnings("ignore:resuming, but not to the same bits")
def test_a_run_goes_on_with_its_own_texts_alone(folder, tmp_path, capsys):
    corpus, run = (folder / "corpus.txt").read_bytes(), str(tmp_path / "run")
    here, there = tmp_path / "corpus.txt", tmp_path / "there" / "corpus.txt"
    words = ["--data", str(_written(here, corpus)), "--out", run, "--epochs", "1"]
    assert main(["train", *SMALL, *words]) == 0
    _written(there, corpus)
    here.write_bytes(corpus.replace(b"sat", b"tas"))
    assert main(["train", "--resume", run, "--epochs", "2"]) == 2
    assert "corpus.txt holds other data than" in capsys.readouterr().err
    assert main(["train", "--resume", run, "--epochs", "2", "--data", str(there)]) == 0
    assert pyro_vae.load(run).vocabulary == pyro_vae.load(folder / "run").vocabulary


@pytest.mark.parametrize("name", ["CategoricalSequence", "AutoregressiveSequence"])
def test_what_a_run_of_texts_stores_is_built_again(name, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    words = ["train", "--data", str(tmp_path / "corpus.txt"), "--likelihood", name]
    parser = training_parser()
    config = parser.parse(words[1:])
    data = load_data(config.data, config)
    settle(config, data)
    (tmp_path / "config.yaml").write_text(as_text(as_dict(config)))
    stored = parser.config(parser.read_file(tmp_path / "config.yaml", set()))
    family = components_built(stored).likelihood(data.event_shape)
    assert (family.num_categories, family.padding) == (len(data.vocabulary), 0)
    assert stored.encoder.all_arguments()["num_symbols"] == len(data.vocabulary)
    assert (stored.decoder is None) == (name == "AutoregressiveSequence")
    if name == "AutoregressiveSequence":
        assert main([*words, "--likelihood.network.num_context", "3"]) == 2
        assert "num_context 3: it is set by what takes" in capsys.readouterr().err


def test_one_text_is_enough_for_a_trained_run(folder, tmp_path):
    new, run = _written(tmp_path / "one.txt", b"a cat sat."), str(folder / "run")
    assert main(["encode", run, "--data", str(new), "--out", str(tmp_path / "z.npy")]) == 0
    expected = pyro_vae.load(run).encode(["a cat sat."])
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "z.npy")), expected)


def test_symbols_have_no_squared_error():
    data = from_arrays(CORPUS)
    vae = VAE.assemble(
        data.event_shape, (2,), decoder=partial(RecurrentDecoder, hidden=4),
        likelihood=partial(CategoricalSequence, num_categories=len(data.vocabulary)),
    )  # fmt: skip
    found = evaluation.reconstruction_error(vae, data.test.x.float())
    assert found.squared_error is None
    assert found.reconstruction_nats.value < 0


def test_texts_are_fitted_as_they_are():
    data = from_arrays(CORPUS)
    vae = VAE.assemble(
        data.event_shape, (2,), decoder=partial(RecurrentDecoder, hidden=4),
        encoder=partial(Recurrent, num_symbols=len(data.vocabulary), padding=0, hidden=4),
        likelihood=partial(CategoricalSequence, num_categories=len(data.vocabulary)),
    )  # fmt: skip
    one, other = (
        fit(copy.deepcopy(vae), given, epochs=1, engine="eager", progress=False, seed=1).history
        for given in (CORPUS, data)
    )
    assert one[0]["validation_elbo_nats"] == other[0]["validation_elbo_nats"]
    assert np.isfinite(one[0]["validation_elbo_nats"])


def test_the_report_shows_texts_as_they_are():
    page = as_html(TextTable("a & b", ("x",), [("<script>",), ("two\nlines",), ("\x1b[1m",)], 3))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "two\nlines" in page
    assert "\x1b" not in page
    assert "a &amp; b" in page
