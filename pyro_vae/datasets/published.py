"""Published data sets by name: scikit-learn's digits, and what torchvision downloads."""

from __future__ import annotations

import gzip
import hashlib
import math
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.datasets.arrays import from_arrays
from pyro_vae.datasets.data import Dataset
from pyro_vae.datasets.downloads import download
from pyro_vae.datasets.files import reason_of
from pyro_vae.datasets.labels import number_classes
from pyro_vae.files import replace_file

__all__ = ["NAMES", "load_named"]

NAMES = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "svhn")
"""The data sets that `load` knows by name."""


# SHA-256 of the files, unzipped, of which MD5 sums are published zipped.
_PUBLISHED = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


_LARGEST = 2**29  # in bytes, unfolded; the largest published file has 88 million


class _Idx(NamedTuple):
    """Where torchvision keeps one relative of MNIST."""

    folder: str
    train: str = "train"
    test: str = "t10k"
    num_validation: int = 10_000
    classes: tuple[str, ...] = tuple("0123456789")


_IDX = {
    "mnist": _Idx("MNIST"),
    "fashion_mnist": _Idx(
        "FashionMNIST",
        classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                 "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": _Idx("KMNIST", classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    "emnist": _Idx(
        "EMNIST", "emnist-balanced-train", "emnist-balanced-test", 18_800,
        classes=tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
    ),
}  # fmt: skip
_COLOUR = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                "truck"),
    "svhn": tuple("0123456789"),
}  # fmt: skip


def load_named(name: str, root: Path) -> Dataset:
    """Load a data set of `NAMES` from below `root`, downloading it where it is missing."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return from_arrays(digits.images, digits.target, name=name, levels=16)
    if name in _IDX:
        return _load_idx(name, root, _IDX[name])
    return _load_colour(name, root)


def _load_idx(name: str, root: Path, files: _Idx) -> Dataset:
    folder = root / files.folder / "raw"
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    stems = [f"{part}-{kind}" for part in (files.train, files.test) for kind in kinds]
    missing = [stem for stem in stems if _idx_path(folder, stem) is None]
    if missing:
        options = {"split": "balanced"} if name == "emnist" else {}
        placed = [Path(files.folder) / "raw" / stem for stem in stems]
        wanted = f"{', '.join(f'{stem}.gz' for stem in missing)} in {folder}"
        download(
            name,
            root,
            placed,
            wanted,
            lambda tv, at: getattr(tv, files.folder)(at, download=True, **options),
        )
        _note_hashes(folder, stems)
    read = [_read_idx(folder, stem) for stem in stems]
    train, classes, test, test_classes = (array for array, _ in read)
    if name == "emnist":
        train, test = train.transpose(0, 2, 1), test.transpose(0, 2, 1)
    held = _held_out(name, train, classes, files.num_validation)
    _check_published(name, folder, stems, [digest for _, digest in read])
    parts = {**held, "test": {"x": test, "labels": test_classes}}
    return from_arrays(parts, name=name, levels=255, classes=files.classes)


def _idx_path(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _check_published(name: str, folder: Path, stems: list[str], digests: list[str]) -> None:
    """Refuse files that are not, bit for bit, those that were published, where these are known.

    Of others, those that were unpacked of an archive with the published MD5 sum.
    """
    known = dict(zip(stems, _PUBLISHED.get(name, ()), strict=False)) or _noted_hashes(folder)
    for stem, digest in zip(stems, digests, strict=True):
        published = known.get(stem, digest)
        if digest != published:
            path = _idx_path(folder, stem)
            assert path is not None
            what = f"not the published file: SHA-256 {digest[:12]}..., not {published[:12]}..."
            raise ValueError(_delete(path, what))


_HASHES = "SHA256SUMS"  # of what torchvision has just unpacked, in the form of sha256sum


def _note_hashes(folder: Path, stems: list[str]) -> None:
    """Write down the hashes of files that were unpacked of archives with published MD5 sums."""
    lines = {**_noted_hashes(folder), **{stem: _read_idx(folder, stem)[1] for stem in stems}}
    text = "".join(f"{digest}  {stem}\n" for stem, digest in lines.items())
    replace_file(folder / _HASHES, text.encode())


def _noted_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of files by name; none where there is no such list, or no readable one."""
    try:
        lines = (folder / _HASHES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.split() for line in lines)
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _read_idx(folder: Path, stem: str) -> tuple[np.ndarray, str]:
    """The array in an idx file, plain or gzipped, and the SHA-256 of the file, unzipped.

    Every count in its header is checked.
    """
    path = _idx_path(folder, stem)
    assert path is not None
    rank = int(stem.split("idx")[1][0])
    start = 4 + 4 * rank
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(start)
            if len(header) < start or header[:4] != bytes((0, 0, 8, rank)):
                starts = f"starts {header[:4]!r}"
                raise ValueError(_delete(path, f"not an idx{rank} file of bytes ({starts})"))
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", rank, 4))
            size = math.prod(shape)
            if size > _LARGEST:
                raise ValueError(_delete(path, f"tells of {size:,} bytes, more than any published"))
            raw = stream.read(size + 1)  # a byte more tells that there is more
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(_delete(path, f"not a readable gzip file ({reason_of(error)})")) from None
    if len(raw) != size:
        held = f"{len(raw):,} bytes" + (" or more" if len(raw) > size else "")
        raise ValueError(_delete(path, f"holds {held} where its header says {shape}"))
    array = np.frombuffer(raw, np.uint8).reshape(shape).copy()
    return array, hashlib.sha256(header + raw).hexdigest()


def _delete(path: Path, what: str) -> str:
    return f"{path}: {what}; delete it and download again"


def _held_out(name: str, x: np.ndarray, labels: np.ndarray, held: int) -> dict[str, Any]:
    if len(x) <= held:
        raise ValueError(f"{name}: {len(x):,} training images, expected more than {held:,}")
    # Checked before the split, where the two counts are those of the files.
    number_classes({f"{name} train": (labels, len(x))})
    first, last = slice(-held), slice(-held, None)
    return {
        part: {"x": x[rows], "labels": labels[rows]}
        for part, rows in (("train", first), ("validation", last))
    }


def _cifar10(torchvision: Any, root: str | Path, **options: bool) -> list[Any]:
    return [torchvision.CIFAR10(root, train=train, **options) for train in (True, False)]


def _svhn(torchvision: Any, root: str | Path, **options: bool) -> list[Any]:
    return [torchvision.SVHN(root, split, **options) for split in ("train", "test")]


def _load_colour(name: str, root: Path) -> Dataset:
    """CIFAR-10 or SVHN, whose files torchvision holds against their published MD5 sums."""
    if name == "cifar10":
        read, folder = _cifar10, "cifar-10-batches-py"
        files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
        wanted = f"the folder {folder} of cifar-10-python.tar.gz in {root}"
    else:
        read, folder, files = _svhn, ".", ("train_32x32.mat", "test_32x32.mat")
        wanted = f"{', '.join(files)} in {root}"
    placed = [Path(folder) / file for file in files]
    if not all((root / path).is_file() for path in placed):
        download(name, root, placed, wanted, lambda tv, at: read(tv, at, download=True))
    from torchvision import datasets as torchvision_datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about the way CIFAR's old pickles are made
            train, test = read(torchvision_datasets, root)
    except Exception as error:  # whatever the damage, the cure is the same
        raise ValueError(_delete(root / folder, f"corrupt ({reason_of(error)})")) from None
    fields = _pixels(train)
    held = _held_out(name, fields["x"], fields["labels"], 5_000)
    parts = {**held, "test": _pixels(test)}
    return from_arrays(parts, name=name, levels=255, classes=_COLOUR[name])


def _pixels(images: Any) -> dict[str, np.ndarray]:
    data = images.data if images.data.shape[1] == 3 else images.data.transpose(0, 3, 1, 2)
    labels = images.labels if hasattr(images, "labels") else images.targets
    return {"x": data, "labels": np.asarray(labels)}
