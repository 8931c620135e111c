"""Data sets: what is loaded, how it is split, and what each bad input is told."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mapping import is_mapped
from PIL import Image

from pyro_vae import datasets, memory
from pyro_vae.datasets import Data, Dataset, from_arrays, load
from pyro_vae.engine.data import observe_once
from pyro_vae.engine.observations import AsFloat

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "torchvision"
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")
IDX = (*IDX, "t10k-labels-idx1-ubyte")


def parts(dataset: Dataset) -> list[Data]:
    return [dataset.train, dataset.validation, dataset.test]


def all_rows(dataset: Dataset) -> torch.Tensor:
    return torch.cat([part.x for part in parts(dataset)])


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text, "an error without words"
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------------------- named sets


def test_digits_are_the_bundled_scans_each_in_one_part():
    from sklearn.datasets import load_digits

    digits, bundled = load("digits"), load_digits()
    assert [len(part) for part in parts(digits)] == [1437, 180, 180]
    assert (digits.levels, digits.event_shape, digits.train.x.dtype) == (16, (1, 8, 8), torch.uint8)
    ours = np.column_stack(
        [all_rows(digits).reshape(1797, 64).numpy(), torch.cat([p.labels for p in parts(digits)])]
    )
    theirs = np.column_stack([bundled.data, bundled.target])
    # The same rows with the same labels, each as often: no row is lost, doubled or mislabelled.
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    assert not np.array_equal(ours, theirs)


def test_digits_keep_their_split_for_ever():
    assert load("digits").fingerprint() == load("Digits").fingerprint()
    # Of the rows that are held out; changes only if the split does, which published runs forbid.
    held = load("digits").test.x.numpy().tobytes()
    assert hashlib.sha256(held).hexdigest()[:16] == "3343584f445a3a54"


def test_fingerprint_sees_one_byte_one_label_and_one_swap():
    x, labels = np.arange(60, dtype=np.uint8).reshape(20, 3), np.arange(20)
    base = from_arrays(x, labels).fingerprint()
    assert base == from_arrays(x, labels).fingerprint()
    changed, relabelled = x.copy(), labels.copy()
    changed[7, 1] ^= 1
    relabelled[3] += 1
    others = [
        from_arrays(changed, labels),
        from_arrays(x, relabelled),
        from_arrays(x),
        from_arrays(x, labels, seed=1),
        from_arrays(x.astype(np.float32) + 0.5, labels),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 6


@pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="../shared/data/torchvision is absent")
def test_mnist_has_the_published_counts_and_mean():
    before = sorted(SHARED.rglob("*"))
    mnist = load("mnist", root=SHARED)
    assert sorted(SHARED.rglob("*")) == before
    assert [len(part) for part in parts(mnist)] == [50_000, 10_000, 10_000]
    assert (mnist.event_shape, mnist.levels, mnist.train.x.dtype) == ((1, 28, 28), 255, torch.uint8)
    training = torch.cat([mnist.train.x, mnist.validation.x])
    assert training.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    counts = torch.cat([mnist.train.labels, mnist.validation.labels]).bincount().tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    with gzip.open(SHARED / "MNIST/raw/train-images-idx3-ubyte.gz") as file:
        last = np.frombuffer(file.read()[-784:], np.uint8)
    assert np.array_equal(mnist.validation.x[-1].flatten().numpy(), last)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(raw: Path, *, num_train: int = 10_005, num_labels: int | None = None) -> None:
    raw.mkdir(parents=True)
    x = np.random.RandomState(0).randint(0, 256, (num_train, 2, 3))
    arrays = (x, np.arange(num_labels or num_train) % 7, x[:4], np.arange(4))
    for stem, array in zip(IDX, arrays, strict=True):
        (raw / f"{stem}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))


def test_plain_and_gzipped_files_are_the_same_and_nothing_is_written(tmp_path):
    write_idx(tmp_path / "a/KMNIST/raw")
    write_idx(tmp_path / "b/KMNIST/raw")
    for path in list((tmp_path / "b/KMNIST/raw").iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    gzipped, plain = load("kmnist", root=tmp_path / "a"), load("KMNIST", root=tmp_path / "b")
    assert gzipped.fingerprint() == plain.fingerprint()
    assert [len(part) for part in parts(plain)] == [5, 10_000, 4]
    assert sorted(tmp_path.rglob("*")) == before


def test_emnist_is_turned_upright(tmp_path):
    raw = tmp_path / "EMNIST/raw"
    raw.mkdir(parents=True)
    x = np.arange(18_802 * 6).reshape(-1, 2, 3) % 251
    for split in ("train", "test"):
        (raw / f"emnist-balanced-{split}-images-idx3-ubyte").write_bytes(idx_bytes(x))
        (raw / f"emnist-balanced-{split}-labels-idx1-ubyte").write_bytes(idx_bytes(x[:, 0, 0] % 47))
    emnist = load("emnist", root=tmp_path)
    assert emnist.event_shape == (1, 3, 2)
    assert np.array_equal(emnist.train.x[1, 0].numpy(), x[1].T)
    assert len(emnist.validation) == 18_800


DAMAGE = {
    "truncated": (lambda raw: raw[: len(raw) // 2], "not a readable gzip file"),
    "flipped": (lambda raw: raw[:-6] + bytes([raw[-6] ^ 255]) + raw[-5:], "CRC"),
    "html": (lambda raw: b"<html>404</html>", "not a readable gzip file"),
    "empty": (lambda raw: b"", "not an idx3 file"),
    "doubled": (lambda raw: raw + raw, "where its header says"),
    "labels": (lambda raw: gzip.compress(idx_bytes(np.arange(3))), "not an idx3 file"),
    "bomb": (lambda raw: gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12), "more than any publ"),
    "short": (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "where its header says"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_idx_files_are_named_with_the_cure(tmp_path, damage):
    write_idx(tmp_path / "MNIST/raw")
    path = tmp_path / "MNIST/raw" / f"{IDX[0]}.gz"
    spoil, words = DAMAGE[damage]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load("mnist", root=tmp_path)
    assert str(path) in one_line(caught.value)
    assert "delete it and download again" in str(caught.value)


def test_labels_that_do_not_match_the_images_are_refused(tmp_path):
    write_idx(tmp_path / "MNIST/raw", num_labels=10_004)
    with pytest.raises(ValueError, match=r"10004 labels for 10005 rows"):
        load("mnist", root=tmp_path)


def test_a_failed_download_says_what_to_place_where_and_leaves_nothing(
    tmp_path, monkeypatch, capsys
):
    from torchvision.datasets import MNIST

    def fail(self):
        Path(self.raw_folder).mkdir(parents=True)
        (Path(self.raw_folder) / f"{IDX[0]}.gz").write_bytes(b"half")
        print("Downloading")
        raise RuntimeError("Error downloading:\nTried a mirror, got:\n<urlopen error>")

    monkeypatch.setattr(MNIST, "download", fail)
    root = tmp_path / "some/data"
    with pytest.raises(FileNotFoundError) as caught:
        load("fashion-mnist", root=root)
    text = one_line(caught.value)
    assert str(root / "FashionMNIST" / "raw") in text
    assert "pass root with the folder" in text
    assert all(f"{stem}.gz" in text for stem in IDX)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_failed_download_keeps_the_files_that_were_there(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    write_idx(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw" / f"{IDX[3]}.gz").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")}
    monkeypatch.setattr(MNIST, "download", lambda self: 1 / 0)
    with pytest.raises(FileNotFoundError, match="division by zero") as caught:
        load("mnist", root=tmp_path)
    assert f"place {IDX[3]}.gz in" in one_line(caught.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MNIST"]


def test_a_download_puts_whole_files_in_place_and_is_not_repeated(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    calls = []
    for left in (".download-abc", ".download-999999999-x"):
        (tmp_path / "data" / left / "MNIST").mkdir(parents=True)
    alive = tmp_path / "data" / f".download-{os.getppid()}-x"
    alive.mkdir()

    def fetch(self):
        calls.append(self.root)
        write_idx(Path(self.raw_folder))
        for path in Path(self.raw_folder).iterdir():
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))

    monkeypatch.setattr(MNIST, "download", fetch)
    first = load("kmnist", root=tmp_path / "data")
    assert load("kmnist", root=tmp_path / "data").fingerprint() == first.fingerprint()
    assert len(calls) == 1
    # On the file system of the root, so that moving into place is atomic.
    assert Path(calls[0]).parent == tmp_path / "data"
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == sorted(f"data/KMNIST/raw/{name}" for name in (*IDX, "SHA256SUMS"))
    # What others left is swept away, except of a process that still runs.
    assert [p.name for p in (tmp_path / "data").glob(".download-*")] == [alive.name]
    # One bit of what was unpacked of an archive with a published sum is noticed.
    path = tmp_path / "data/KMNIST/raw" / IDX[2]
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="not the published file: SHA-256"):
        load("kmnist", root=tmp_path / "data")


def test_files_that_were_not_published_are_told(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    with pytest.raises(ValueError, match="not the published file: SHA-256") as caught:
        load("mnist", root=tmp_path)
    assert "delete it and download again" in one_line(caught.value)


@pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="../shared/data/torchvision is absent")
@pytest.mark.parametrize("place", [3, 20, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_one_bit_of_a_published_file_is_noticed(tmp_path, place, zipped):
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for stem in IDX:
        (folder / f"{stem}.gz").symlink_to(SHARED / f"MNIST/raw/{stem}.gz")
    path = folder / f"{IDX[3]}.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[place] ^= 1
    path.unlink()
    if zipped:
        path.write_bytes(gzip.compress(bytes(raw), 1))
    else:
        path.with_suffix("").write_bytes(raw)
    with pytest.raises(ValueError, match="delete it and download again") as caught:
        load("mnist", root=tmp_path)
    assert IDX[3] in one_line(caught.value)


ADDRESSES = {
    "http://yann.lecun.com/exdb/mnist/x.gz": "https://yann.lecun.com/exdb/mnist/x.gz",
    "https://a.com/x.gz": "https://a.com/x.gz",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/x.gz":
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/x.gz",
}  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_downloaded_over_plain_http(tmp_path, monkeypatch, address):
    from torchvision.datasets import MNIST, utils

    asked = []

    def refuse(self, request):
        asked.append(request.full_url)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", refuse)
    monkeypatch.setattr(urllib.request.HTTPHandler, "http_open", refuse)
    # The second way that torchvision turns to is plain http.
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(
        MNIST, "download", lambda self: utils.download_url(address, self.raw_folder)
    )
    before = urllib.request._opener
    with pytest.raises(FileNotFoundError, match="no route"):
        load("kmnist", root=tmp_path)
    assert set(asked) == {ADDRESSES[address]}
    assert urllib.request._opener is before


def test_colour_images_become_channel_first_with_the_last_rows_held_out(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    class Part:
        def __init__(self, root, train=True, download=False):
            num = 5_010 if train else 20
            self.data = np.arange(num * 4 * 5 * 3).reshape(num, 4, 5, 3).astype(np.uint8)
            self.targets = [row % 10 for row in range(num)]
            assert Path(root) == tmp_path
            assert not download

    monkeypatch.setattr(tv, "CIFAR10", Part)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).touch()
    cifar = load("cifar10", root=tmp_path)
    assert (cifar.event_shape, cifar.levels) == ((3, 4, 5), 255)
    assert [len(part) for part in parts(cifar)] == [10, 5_000, 20]
    want = Part(tmp_path).data[10]
    assert np.array_equal(cifar.validation.x[0].numpy(), np.moveaxis(want, -1, 0))
    assert cifar.validation.labels[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_corrupt_colour_files_are_named_with_the_cure(tmp_path, name):
    folder = tmp_path / ("cifar-10-batches-py" if name == "cifar10" else ".")
    folder.mkdir(exist_ok=True)
    for i in range(1, 6):
        (folder / f"data_batch_{i}").touch()
    for other in ("test_batch", "batches.meta", "train_32x32.mat", "test_32x32.mat"):
        (folder / other).touch()
    with pytest.raises(ValueError, match="delete it and download again") as caught:
        load(name, root=tmp_path)
    assert str(folder) in one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mnits", ValueError, "Did you mean mnist"),
        ("fashion", ValueError, "fashion_mnist"),
        ("zzzz", ValueError, "Known: digits, mnist"),
        ("faces.npy", FileNotFoundError, "faces.npy: no such file or folder"),
        ("some/folder", FileNotFoundError, "some/folder: no such file or folder"),
        (__file__, ValueError, "expected a .npy or .npz file"),
        ("", ValueError, "'' names no data: give the path"),
        ("/dev/null", ValueError, "/dev/null: a pipe or a device, not a file"),
    ],
)
def test_unknown_names_and_paths(name, kind, words):
    with pytest.raises(kind, match=re.escape(words)) as caught:
        load(name)
    one_line(caught.value)


# -------------------------------------------------------------------------------------- arrays

FLOATS = np.random.RandomState(0).randn(30, 4)
STORED = {
    # values -> stored dtype, levels, event shape
    "bool": (FLOATS > 0, torch.uint8, 1, (4,)),
    "binary floats": ((FLOATS > 0).astype(float), torch.uint8, 1, (4,)),
    "all zero": (np.zeros((30, 4), np.int64), torch.uint8, 1, (4,)),
    "float64": (FLOATS, torch.float32, None, (4,)),
    "float16": (FLOATS.astype(np.float16), torch.float32, None, (4,)),
    "big-endian": (FLOATS.astype(">f8"), torch.float32, None, (4,)),
    "grey in [0, 1]": (abs(FLOATS) % 1, torch.float32, None, (4,)),
    "negative integers": (np.round(FLOATS * 3).astype(int), torch.float32, None, (4,)),
    "counts": (np.arange(120).reshape(30, 4), torch.uint8, 119, (4,)),
    "counts to 1000": (np.arange(120).reshape(30, 4) + 881, torch.int16, 1000, (4,)),
    "counts to 10^6": (np.arange(120).reshape(30, 4) + 999_881, torch.int32, 1_000_000, (4,)),
    "uint16": (np.full((30, 4), 40_000, np.uint16), torch.int32, 40_000, (4,)),
    "flat uint8 pixels": (np.full((30, 4), 200, np.uint8), torch.uint8, 255, (4,)),
    "uint8 images": (np.full((30, 5, 4), 20, np.uint8), torch.uint8, 255, (1, 5, 4)),
    "binary uint8 images": (np.ones((30, 5, 4), np.uint8), torch.uint8, 1, (1, 5, 4)),
    "colour": (np.full((30, 3, 5, 4), 20, np.uint8), torch.uint8, 255, (3, 5, 4)),
    "list": ([[1, 2], [3, 4], [5, 6]], torch.uint8, 6, (2,)),
    "tensor": (torch.arange(30.0).reshape(10, 3).T, torch.float32, None, (10,)),
    "gradient": (torch.randn(9, 2, requires_grad=True), torch.float32, None, (2,)),
    "bfloat16": (torch.full((9, 2), 0.5, dtype=torch.bfloat16), torch.float32, None, (2,)),
    "strided": (np.arange(240.0).reshape(30, 8)[:, ::2], torch.float32, None, (4,)),
    "reversed": (FLOATS[::-1], torch.float32, None, (4,)),
    "huge": (FLOATS * 1e30, torch.float32, None, (4,)),
}


def numbers(values) -> np.ndarray:
    values = values.detach().double().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values).astype(np.float64)


@pytest.mark.parametrize("case", STORED)
def test_arrays_are_stored_by_rule_and_hold_the_same_rows(case):
    values, dtype, levels, event = STORED[case]
    before = numbers(values).copy()
    dataset = from_arrays(values)
    assert (dataset.train.x.dtype, dataset.levels, dataset.event_shape) == (dtype, levels, event)
    assert all(len(part) >= 1 and not part.x.requires_grad for part in parts(dataset))
    ours = all_rows(dataset).double().numpy().reshape(len(before), -1)
    rows = before.astype(np.float32).astype(float).reshape(len(before), -1)
    assert np.array_equal(ours[np.lexsort(ours.T)], rows[np.lexsort(rows.T)])
    for part in parts(dataset):
        part.x.zero_()
    assert np.array_equal(numbers(values), before), "the input was modified"


def test_a_read_only_array_is_taken_without_a_warning():
    values = FLOATS.astype(np.float32)
    values.flags.writeable = False
    assert len(from_arrays(values).train) == 24


@pytest.mark.parametrize(
    ("num", "sizes"), [(3, [1, 1, 1]), (7, [5, 1, 1]), (1797, [1437, 180, 180])]
)
def test_split_sizes(num, sizes):
    assert [len(part) for part in parts(from_arrays(np.ones((num, 1))))] == sizes


def test_the_split_follows_its_seed_and_labels_follow_rows():
    x = np.arange(50).reshape(50, 1)
    one, same, other = (from_arrays(x, x[:, 0], seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    for part in parts(one):
        assert part.x[:, 0].tolist() == part.labels.tolist()


def test_given_levels_turn_whole_floats_into_integers():
    dataset = from_arrays(np.arange(30.0).reshape(10, 3), levels=255)
    assert (dataset.levels, dataset.train.x.dtype) == (255, torch.uint8)


def spoiled(index: tuple[int, ...], value: float) -> np.ndarray:
    x = FLOATS.copy()
    x[index] = value
    return x


BAD_ARRAYS = {
    "nan": (np.full((9, 2), np.nan), {}, "all values are missing (NaN)"),
    "inf": (spoiled((3, 0), -np.inf), {}, "1 infinite values, the first at index (3, 0); repair"),
    "object": (np.array([[{}, 1]] * 5), {}, "dtype object is not numeric: {} at index (0, 0) is d"),
    "objects of text": (np.array([["a", 1]] * 5, object), {}, "'a' at index (0, 0) is str"),
    "dates": (np.zeros((9, 2), "M8[D]"), {}, "dtype datetime64[D] is not numeric; give dates as"),
    "text": (np.array([["a", "b"]] * 5), {}, "is not numeric"),
    "complex": (FLOATS * 1j, {}, "dtype complex128 is not numeric"),
    "ragged": ([[1, 2], [3]], {}, "rows of different lengths"),
    "1-D": (np.ones(12), {}, "expected (N, ...)"),
    "0-D": (np.array(1.0), {}, "shape (), a single number; expected one row per datum"),
    "5-D": (np.ones((9, 1, 2, 2, 2)), {}, "expected (N, D), (N, H, W) or (N, C, H, W)"),
    "two channels": (np.ones((9, 2, 4, 5)), {}, "expected (N, D), (N, H, W) or (N, C, H, W)"),
    "channels last": (np.ones((9, 28, 27, 3)), {}, "x.transpose(0, 3, 1, 2)"),
    "channels last 1": (np.ones((9, 28, 27, 1)), {}, "28x27 images with 1 channels last"),
    "channels last 2": (np.ones((9, 28, 27, 3)), {}, "reads as 28 channels of 27x3 pixels"),
    "no rows": (np.ones((0, 4)), {}, "empty, shape (0, 4)"),
    "no columns": (np.ones((9, 0)), {}, "empty, shape (9, 0)"),
    "one datum": (np.ones((1, 4)), {}, "one datum, but"),
    "two data": (np.ones((2, 4)), {}, "2 data, but"),
    "too large": (spoiled((0, 0), 1e300), {}, "do not fit in 32-bit floats"),
    "too small": (1e-38 * FLOATS, {}, "do not fit in 32-bit floats; rescale them"),
    "too large integers": (np.full((9, 2), 2**40), {}, "exceed 32 bits"),
    "levels": (np.arange(30).reshape(10, 3), {"levels": 16}, "from 0 to 29; levels=16"),
    "levels of floats": (FLOATS, {"levels": 255}, "not all whole; levels=255"),
    "labels count": (FLOATS, {"labels": np.zeros(29, int)}, "29 labels for 30 rows"),
    "labels float": (FLOATS, {"labels": np.full(30, 0.5)}, "expected integers, or"),
    "labels nan": (FLOATS, {"labels": np.full(30, np.nan)}, "labels of array: all are missing"),
    "labels of -1": (FLOATS, {"labels": np.arange(30) % 2 * 2 - 1}, "-1 and 1 alone, and -1 stan"),
    "labels one-hot": (FLOATS, {"labels": np.ones((30, 2), int)}, "shape (30, 2), expected (30,)"),
    "labels of dates": (FLOATS, {"labels": np.zeros(30, "M8[D]")}, "dtype datetime64[D] names no"),
    "labels mixed": (FLOATS, {"labels": np.array(["a", 1] * 15, object)}, "objects of int, str"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_told_what_where_and_how_to_mend(case):
    values, options, words = BAD_ARRAYS[case]
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        from_arrays(values, **options)
    assert "array" in one_line(caught.value)


def test_infinity_is_counted_over_all_chunks(monkeypatch):
    monkeypatch.setattr(datasets.values, "_CHUNK_BYTES", 64)
    x = spoiled((2, 1), np.inf)
    x[25, 3] = -np.inf
    with pytest.raises(ValueError, match=re.escape("2 infinite values, the first at index (2, 1)")):
        from_arrays(x)


MISSING = {
    "real": (FLOATS, None),
    "counts": (np.arange(120.0).reshape(30, 4) % 7, 6),
    "bits": (np.arange(120.0).reshape(30, 4) % 2, 1),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_values_stay_and_the_others_say_what_the_data_are(kind):
    x, levels = MISSING[kind]
    x = x.copy()
    x[::7, 1] = np.nan
    found = from_arrays(x)
    parts = torch.cat([found.train.x, found.validation.x, found.test.x])
    assert found.levels == levels
    assert parts.dtype == torch.float32
    assert int(parts.isnan().sum()) == np.isnan(x).sum() == 5
    assert parts.nansum().item() == pytest.approx(np.nansum(x.astype("f4")), rel=1e-5)


class Nullable(list):
    """A column as pandas gives it to numpy: objects."""

    def __array__(self, dtype=None, copy=None):
        return np.array(list(self), object)


LABELS = {
    # labels in turn -> the names of the classes
    "gaps": ([0, 1000, 2000], ("0", "1000", "2000")),
    "from one": ([3, 1, 2], ("1", "2", "3")),
    "text": (["dog", "cat", "cow"], ("cat", "cow", "dog")),
    "bytes": ([b"b", b"a"], ("a", "b")),
    "booleans": ([True, False], ("False", "True")),
    "whole floats": ([2.0, 10.0], ("2", "10")),
    "large": ([2**62 + 5, 1], ("1", str(2**62 + 5))),
    "objects": (Nullable(["b", "a", "c"]), ("a", "b", "c")),
    "nullable integers": (Nullable([7, 5]), ("5", "7")),
    "one class": (["a"], ("a",)),
}


@pytest.mark.parametrize("kind", LABELS)
def test_classes_are_numbered_by_what_occurs_and_keep_their_names(kind):
    values, names = LABELS[kind]
    given = type(values)([values[row % len(values)] for row in range(30)])
    found = from_arrays(np.arange(30).reshape(30, 1), given)
    assert found.classes == names
    for part in parts(found):
        assert part.labels.dtype == torch.int64
        texts = [given[row] for row in part.x[:, 0].tolist()]
        texts = [t.decode() if isinstance(t, bytes) else f"{t:g}" if isinstance(t, float) else t
                 for t in texts]  # fmt: skip
        assert [names[label] for label in part.labels.tolist()] == [str(text) for text in texts]


def test_labels_as_a_column_or_a_tensor_are_labels():
    x = np.arange(30).reshape(30, 1)
    want = from_arrays(x, x[:, 0]).fingerprint()
    assert from_arrays(x, x).fingerprint() == want
    assert from_arrays(x, torch.arange(30)).fingerprint() == want
    assert from_arrays(x).classes is None


def test_other_names_of_the_same_numbers_are_other_data():
    x = np.arange(30).reshape(30, 1)
    prints = {from_arrays(x, np.array(names)[x[:, 0] % 2]).fingerprint()
              for names in (["a", "b"], ["a", "c"], [0, 1], [0, 9])}  # fmt: skip
    assert len(prints) == 4


def test_published_sets_name_their_classes():
    assert load("digits").classes == tuple("0123456789")


# --------------------------------------------------------------------------------------- files


def test_npy_equals_its_array(tmp_path):
    np.save(tmp_path / "x.npy", FLOATS)
    assert load(tmp_path / "x.npy").fingerprint() == from_arrays(FLOATS).fingerprint()
    assert load(str(tmp_path / "x.npy")).name == "x.npy"


ORDER = "split in file order"
MAPPED_TYPES = [np.uint8, np.int8, np.int16, np.int64, np.float16, np.float32, np.float64, bool]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", MAPPED_TYPES)
def test_a_large_npy_is_mapped_and_split_in_order(tmp_path, monkeypatch, dtype, order):
    x = np.asarray(np.arange(200).reshape(20, 10) % 120, dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(memory, "MAPPED_BYTES", 100)
    with pytest.warns(UserWarning, match=ORDER) as caught:
        dataset = load(tmp_path / "x.npy")
    assert len(caught) == 1, "torch's warning about read-only arrays came through"
    assert [len(part) for part in parts(dataset)] == [16, 2, 2]
    assert np.array_equal(all_rows(dataset).numpy(), x)
    assert is_mapped(dataset.train.x, "x.npy"), "it was copied"
    observed = observe_once(dataset.train, AsFloat(dataset.levels), seed=0, device="cpu").x
    assert observed.dtype == torch.float32
    assert np.array_equal(observed.numpy(), x[:16].astype("f4"))


@pytest.mark.parametrize("dtype", [">f4", ">i8", "u2", "u4"])
def test_a_large_npy_of_a_type_that_torch_lacks_is_converted_into_a_file(
    tmp_path, monkeypatch, dtype
):
    x = np.arange(200).reshape(20, 10).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(memory, "MAPPED_BYTES", 100)
    with pytest.warns(UserWarning, match=ORDER):
        dataset = load(tmp_path / "x.npy")
    assert np.array_equal(all_rows(dataset).numpy(), x.astype("f4"))
    assert is_mapped(dataset.train.x, "(deleted)")


def test_views_of_mapped_arrays_with_labels_stay_mapped(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(200.0).reshape(20, 10) / 7)
    x = np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r"))[::2]
    dataset = from_arrays(x, np.arange(10))
    assert is_mapped(dataset.train.x, "x.npy")
    assert dataset.validation.labels.tolist() == [8]
    assert np.array_equal(all_rows(dataset).numpy(), x)


@pytest.mark.parametrize("dtype", ["f4", "i8", "u1"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_large_arrays_of_archives_stay_on_disk(tmp_path, monkeypatch, save, dtype):
    x = np.asfortranarray(np.arange(200).reshape(20, 10).astype(dtype))
    save(tmp_path / "x.npz", y=np.arange(4).repeat(5), x=x)
    monkeypatch.setattr(memory, "MAPPED_BYTES", 196)
    with pytest.warns(UserWarning, match=ORDER):
        dataset = load(tmp_path / "x.npz")
    assert np.array_equal(all_rows(dataset).numpy(), x)
    assert dataset.test.labels.tolist() == [3, 3]
    if dtype != "u1":
        assert is_mapped(dataset.train.x, "x.npz" if save is np.savez else "(deleted)")


def test_a_flipped_bit_of_a_mapped_archive_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MAPPED_BYTES", 100)
    flipped = bytearray(npz_bytes(x=npy_bytes(np.ones((20, 10)))))
    flipped[700] ^= 1
    (tmp_path / "x.npz").write_bytes(flipped)
    with pytest.raises(ValueError, match="truncated or corrupt"):
        load(tmp_path / "x.npz")


def test_an_archive_beyond_memory_is_refused_with_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((2**18, 5), "u1"))
    with pytest.raises(ValueError, match=r"takes 1\.3 MiB, and 1\.0 MiB are free"):
        load(tmp_path / "x.npz")


def npy_bytes(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_claiming(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(64)


def npz_bytes(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


OBJECTS = np.array([{"a": 1}, None], dtype=object)
GOOD = npy_bytes(FLOATS)
BAD_FILES = {
    "empty.npy": (b"", "it is empty"),
    "html.npy": (b"<html>", "it starts with b'<html>'; by its contents it is a page of the web"),
    "archive.npy": (npz_bytes(x=GOOD), "it is .npz: name it so, as in archive.npz"),
    "array.npz": (GOOD, "it is .npy: name it so, as in array.npy"),
    "picture.npy": (b"\x89PNG\r\n\x1a\n", "by its contents it is a PNG image"),
    "truncated.npy": (GOOD[:-5], "truncated or corrupt"),
    "header.npy": (GOOD[:30], "truncated or corrupt"),
    "garbled.npy": (GOOD[:20] + b"((((" + GOOD[24:], "truncated or corrupt"),
    "pickled.npy": (npy_bytes(OBJECTS), "contains pickled objects, which are never loaded"),
    "claims.npy": (npy_claiming((10**13, 1)), "truncated or corrupt"),
    "overflow.npy": (npy_claiming((2**40, 2**40)), "truncated or corrupt"),
    "empty.npz": (b"", "it is empty"),
    "truncated.npz": (npz_bytes(x=GOOD)[:-40], "truncated or corrupt"),
    "flipped.npz": (npz_bytes(x=GOOD).replace(GOOD[200:208], b"\0" * 8), "truncated or corrupt"),
    "pickled.npz": (npz_bytes(x=npy_bytes(OBJECTS)), "contains pickled objects"),
    "claims.npz": (npz_bytes(x=npy_claiming((10**13, 1))), "claims more data than fit in memory"),
    "no_arrays.npz": (npz_bytes(), "holds no arrays"),
    "many.npz": (npz_bytes(a=GOOD, b=GOOD), "holds a, b; expected train, validation and test"),
    "split.npz": (npz_bytes(train=GOOD, test=GOOD), "no validation split"),
    "shapes.npz": (
        npz_bytes(train=GOOD, valid=npy_bytes(FLOATS[:, 1:]), test=GOOD),
        "the splits differ in shape",
    ),
    "labels.npz": (
        npz_bytes(train=GOOD, valid=GOOD, test=GOOD, train_labels=npy_bytes(np.arange(30))),
        "labels for some splits only",
    ),
    "count.npz": (npz_bytes(x=GOOD, y=npy_bytes(np.arange(29))), "29 labels for 30 rows"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_line(tmp_path, name):
    content, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load(tmp_path / name)
    assert name in one_line(caught.value)


@pytest.mark.parametrize("length", range(0, len(GOOD), 37))
def test_every_truncation_is_one_clear_line(tmp_path, length):
    for name, content in (("x.npy", GOOD), ("x.npz", npz_bytes(x=GOOD))):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            load(tmp_path / name)
        one_line(caught.value)


@pytest.mark.parametrize("validation", ["valid", "validation", "val"])
def test_npz_splits_are_taken_as_they_are(tmp_path, validation):
    x, labels = np.arange(20, dtype=np.uint8).reshape(10, 2), np.arange(10)
    arrays = {"train": x[:6], validation: x[6:8], "test": x[8:] + 50}
    marks = {"train_labels": labels[:6], f"{validation}_labels": labels[6:8], "test_y": labels[8:]}
    np.savez(tmp_path / "x.npz", **arrays, **marks)
    dataset = load(tmp_path / "x.npz")
    assert np.array_equal(dataset.train.x.numpy(), x[:6])
    assert dataset.validation.labels.tolist() == [6, 7]
    assert dataset.levels == 69, "levels are those of all parts"


@pytest.mark.parametrize(
    "keys", [("x", "y"), ("images", "labels"), ("data", None), ("other", None)]
)
def test_npz_of_one_array(tmp_path, keys):
    labels = np.arange(30)
    arrays = {keys[0]: FLOATS, **({keys[1]: labels} if keys[1] else {})}
    np.savez(tmp_path / "x.npz", **arrays)
    want = from_arrays(FLOATS, labels if keys[1] else None)
    assert load(tmp_path / "x.npz").fingerprint() == want.fingerprint()


# ------------------------------------------------------------------------------ image folders


def save_image(path: Path, value: int, *, size=(5, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "1", "P") else (value, 1, 2)).save(path)


def test_image_folder_with_classes(tmp_path):
    for row in range(12):
        save_image(tmp_path / "pets" / ("dog" if row % 3 else "cat") / f"{row:02}.png", 20 * row)
    (tmp_path / "pets" / "notes.txt").write_text("not an image")
    pets = load(tmp_path / "pets")
    assert (pets.name, pets.levels, pets.event_shape) == ("pets", 255, (1, 4, 5))
    for part in parts(pets):
        rows = part.x[:, 0, 0, 0].long() // 20
        assert part.labels.tolist() == [int(row % 3 != 0) for row in rows]
    assert sorted(all_rows(pets)[:, 0, 0, 0].tolist()) == list(range(0, 240, 20))


@pytest.mark.parametrize(("mode", "channels", "levels"), [("RGB", 3, 255), ("1", 1, 1)])
def test_image_modes(tmp_path, mode, channels, levels):
    for row in range(3):
        save_image(tmp_path / f"{row}.png", row, mode=mode)
    dataset = load(tmp_path)
    assert (dataset.event_shape, dataset.levels) == ((channels, 4, 5), levels)
    assert dataset.train.labels is None


def test_the_order_of_a_folder_does_not_matter(tmp_path, monkeypatch):
    for row in range(9):
        save_image(tmp_path / f"{row}.png", row)
    walk = Path.rglob
    prints = set()
    for reverse in (True, False):
        monkeypatch.setattr(
            Path, "rglob", lambda self, glob, r=reverse: sorted(walk(self, glob), reverse=r)
        )
        prints.add(load(tmp_path).fingerprint())
    assert len(prints) == 1


@pytest.mark.filterwarnings("ignore:.* stand in the training data, too:UserWarning")
def test_image_folders_named_as_splits_are_the_splits(tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for row in range(count):
            save_image(tmp_path / part / str(row % 2) / f"{row}.png", 10 + row)
    dataset = load(tmp_path)
    assert [len(part) for part in parts(dataset)] == [4, 2, 3]
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.filterwarnings("ignore:.* stand in the training data, too:UserWarning")
@pytest.mark.parametrize("absent", ["train", "validation", "test"])
def test_a_class_that_is_missing_in_one_split_renumbers_nothing(tmp_path, absent):
    for part in ("train", "validation", "test"):
        for value, name in enumerate("abc"):
            for row in range(3) if (part, name) != (absent, "a") else ():
                save_image(tmp_path / part / name / f"{row}.png", 60 * value + row)
    found = load(tmp_path)
    assert found.classes == ("a", "b", "c")
    for part in parts(found):
        assert part.labels.tolist() == (part.x[:, 0, 0, 0] // 60).tolist()


def empty(folder):
    (folder / "a.txt").write_text("")


def sizes(folder):
    save_image(folder / "b.png", 1, size=(6, 4))


def modes(folder):
    save_image(folder / "b.png", 1, mode="RGB")


def palette(folder):
    save_image(folder / "a.png", 1, mode="P")


def truncated(folder):
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:45])


def text(folder):
    (folder / "b.jpg").write_text("<html>")


def nested(folder):
    save_image(folder / "sub" / "b.png", 1)


BAD_FOLDERS = [
    (empty, "no text in it: 1 empty texts"),
    (sizes, "b.png is 6x4 with 1 channel of uint8 but a.png is 5x4"),
    (modes, "b.png is 5x4 with 3 channels of uint8"),
    (palette, "a.png: image mode P; convert it"),
    (truncated, "b.png: cannot be read as an image"),
    (text, "b.jpg: cannot be read as an image"),
    (nested, "images both beside and inside subfolders (sub, ...)"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD_FOLDERS)
def test_bad_image_folders(tmp_path, spoil, words):
    if spoil is not empty:
        save_image(tmp_path / "a.png", 0)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load(tmp_path)
    assert str(tmp_path) in one_line(caught.value)


@pytest.mark.parametrize("labels", [None, torch.arange(50)])
def test_every_part_knows_its_rows_of_the_users_array(labels) -> None:
    x = torch.arange(100.0).reshape(50, 2) - 0.5
    data = from_arrays(x, labels)
    for part in (data.train, data.validation, data.test):
        assert torch.equal(x[part.rows], part.x)
        assert torch.equal(x[part[2:4].rows], part.x[2:4])
        assert torch.equal(x[part[torch.tensor([3, 0])].rows], part.x[[3, 0]])
    alone = Data(x)
    assert alone.rows is None
    assert torch.equal(x[list(alone[7:9][1:].rows)], x[8:9])


def test_negative_labels_are_numbered_by_what_occurs():
    data = from_arrays(FLOATS, np.arange(30) % 3 * 5 - 7)
    assert data.classes == ("-7", "-2", "3")
    numbers = [part.labels for part in (data.train, data.validation, data.test)]
    assert torch.cat(numbers).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("train", "validation", "tset"), "no test split .*'tset' meant for it.*test or testing"),
        (("train", "vaildation", "test"), "no validation split .*'vaildation' meant for it"),
        (("train", "validation", "other"), "no test split beside the other two; add one, named"),
    ],
)
def test_a_mistyped_split_is_named(keys, said, tmp_path):
    parts = {key: np.random.default_rng(n).normal(size=(9, 3)) for n, key in enumerate(keys)}
    np.savez(tmp_path / "d.npz", **parts)
    for given in (parts, None):
        with pytest.raises(ValueError, match=said):
            load(tmp_path / "d.npz") if given is None else from_arrays(given)


def test_mistyped_labels_are_left_out_with_a_question(tmp_path):
    np.savez(tmp_path / "d.npz", x=FLOATS, lables=np.arange(30))
    with pytest.warns(UserWarning, match=r"lables beside x is left out \(is labels meant\?\)"):
        load(tmp_path / "d.npz")
