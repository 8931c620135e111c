"""Named data sets, files, arrays and image folders as tensors with fixed splits.

Rows are kept as they are stored (unscaled, the smallest integer type that holds them), together
with the number of levels that they can take, because that decides which likelihood is exact for
them. Scaling, binarising and dequantising happen later, on the training device.

Every mistake in a file or an array is one line that names the file, the value and the cure.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from pyro_vae.datasets.arrays import as_dataset, from_arrays
from pyro_vae.datasets.axes import Axes, as_given, as_images
from pyro_vae.datasets.data import Data, Dataset, Shape
from pyro_vae.datasets.document_files import (
    holds_counts,
    is_counts,
    load_counts,
    read_words,
    with_words,
)
from pyro_vae.datasets.documents import with_a_word
from pyro_vae.datasets.files import load_file, load_folder
from pyro_vae.datasets.published import NAMES, load_named
from pyro_vae.datasets.splitters import Splitter
from pyro_vae.datasets.table_kinds import TableReading
from pyro_vae.datasets.tables import Column, Table
from pyro_vae.datasets.text import Reading, no_texts
from pyro_vae.datasets.vocabulary import Vocabulary
from pyro_vae.memory import MAPPED_BYTES
from pyro_vae.wording import option

__all__ = [
    "MAPPED_BYTES",
    "NAMES",
    "Axes",
    "Column",
    "Data",
    "Dataset",
    "Reading",
    "Shape",
    "Splitter",
    "Table",
    "TableReading",
    "Vocabulary",
    "as_dataset",
    "as_given",
    "as_images",
    "from_arrays",
    "load",
]


def load(
    name: str | Path,
    *,
    root: Path | None = None,
    missing: Sequence[float] = (),
    axes: Axes = as_images,
    apart: Collection[str] = (),
    text: Reading | None = None,
    words: Path | Sequence[str] | None = None,
    table: TableReading | None = None,
) -> Dataset:
    """Load a data set by name, or a user's own file or folder.

    * `digits`: scikit-learn's bundled 1,797 scans, 8x8, integers 0..16; split 1,437/180/180.
    * `mnist`, `fashion_mnist`, `kmnist`: 28x28, 0..255; the last 10,000 training images are the
      validation set. Read from `<root>/<Folder>/raw/*-ubyte` or `*-ubyte.gz` (torchvision's
      layout), and downloaded there by torchvision where they are missing.
    * `emnist`: the balanced split, turned upright, 47 classes; validation is the last 18,800.
    * `cifar10`, `svhn`: 3x32x32, 0..255; the last 5,000 training images are the validation set.
      torchvision reads CIFAR-10 from pickles, after it has compared their MD5 sums with the
      published ones; no other file is ever unpickled.
    * a `.npy` file of one array, split as in `from_arrays`. Above `MAPPED_BYTES` it stays on disk
      (mapped) and is split in file order, 80/10/10, which a warning says.
    * a `.npz` file: `x` (or `images`, `data`) and what belongs to its rows: `y` (or `labels`),
      `weights`, `mask`, `covariates`; or `train`, `validation` (or `valid`) and `test` with
      `train_labels`, `train_covariates` ..., or `x_train`, `y_train` ...; or one array of any name.
      An array above `MAPPED_BYTES` stays on disk: in the archive, or unfolded beside it.
    * images of floats k / 255 or k / 65535 in either become the integers k.
    * a folder of images of one size and mode, in sorted order, turned upright; subfolders are class
      labels, unless they are named `train`, `validation` (`valid`, `val`, `dev`) and `test`: then
      they are the splits.
    * a `.txt` file of one text a line; a `.csv` or `.tsv` file with a header, of which `text` names
      a column; a folder of texts, one a file, as one of images; or one of `train.txt`, `valid.txt`
      and `test.txt`, which have a text a line. All are UTF-8.
    * documents as sparse counts of words, (N, V), as `scipy.sparse.save_npz` writes them: a `.npz`
      file, or a folder of `train.npz`, `test.npz` and, if there is one, `validation.npz`; else that
      is a tenth of the training documents. A file `vocab.txt` beside them has the words.
    * a `.csv` or `.tsv` file with a header of which no column of texts is named, a `.parquet`,
      `.feather` or `.xlsx` file: a table, whose columns have names and kinds, `Dataset.table`.
      Empty cells, NA, N/A, NaN and null are missing values.
    * a `.smi` file of one molecule a line, as SMILES, and what is left of the line a name, which is
      not read; also compressed, `.smi.gz` or `.smi.xz`.

    Args:
        name: one of `NAMES`, or a path. A name wins over a file of that name; write `./mnist`.
        root: where named data sets lie or are downloaded to; `data` if not given.
        missing: numbers in a file that stand for a missing value, such as -9999.
        axes: how the axes of a file's arrays are read; `as_given` takes rows of any shape.
        apart: arrays of a `.npz` file that are taken for something else than rows or labels.
        text: how texts become symbols; characters unless given, and symbols of SMILES of a `.smi`
            file.
        words: what each column of bags of words counts, or a file of them, one a line; of texts
            whose words are counted, the words to count.
        table: how a table is read; the kinds of its columns are found unless given.

    Raises:
        FileNotFoundError: a path that does not exist; a data set that cannot be downloaded.
        ValueError: an unknown name, or data that are corrupt, of the wrong shape or not numeric.
    """
    found = _loaded(name, root, missing, axes, apart, _with_words(text, words), table)
    if text is not None and text.is_bag:
        return found.map(with_a_word) if isinstance(words, Path) else found
    if words is None:
        return found
    return with_words(found, _words(words), words if isinstance(words, Path) else "words")


def _words(given: Path | Sequence[str]) -> tuple[str, ...]:
    return read_words(given) if isinstance(given, Path) else tuple(given)


def _with_words(text: Reading | None, words: Path | Sequence[str] | None) -> Reading | None:
    if words is None or text is None or not text.is_bag:
        return text
    return replace(text, words=_words(words))


def _loaded(
    name: str | Path,
    root: Path | None,
    missing: Sequence[float],
    axes: Axes,
    apart: Collection[str],
    text: Reading | None,
    table: TableReading | None,
) -> Dataset:
    key = str(name).lower().replace("-", "").replace("_", "")
    known = next((known for known in NAMES if known.replace("_", "") == key), None)
    if table is not None and table.table is None and (known or Path(name).expanduser().is_dir()):
        given = option("columns" if table.kinds else "ignore", python=f"table={table}")
        raise ValueError(f"{given}: {name} is no file of a table; leave it out")
    if known is not None:
        if text is not None:
            raise no_texts(text, known)
        if missing:
            raise ValueError(f"missing={missing[0]:g}: {known} has no missing values")
        return load_named(known, Path("data") if root is None else Path(root).expanduser())
    path = Path(name).expanduser()
    if not str(name):
        raise ValueError(f"{name!r} names no data: give the path of a file or folder, or a name")
    if path.is_dir():
        if missing:
            raise ValueError(
                f"missing={missing[0]:g}: {path} is a folder, whose images and texts have none"
            )
        if holds_counts(path):
            return load_counts(path)
        return load_folder(path, text)
    if path.is_file() and is_counts(path):
        return load_counts(path)
    if path.is_file():
        return load_file(path, missing=missing, axes=axes, apart=apart, text=text, table=table)
    if path.exists():
        raise ValueError(f"{path}: a pipe or a device, not a file; write what it gives to a file")
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(
            f"{path}: no such file or folder; named data sets: {', '.join(NAMES)}"
        )
    near = difflib.get_close_matches(str(name).lower(), NAMES, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"unknown data set {str(name)!r}.{hint} Known: {', '.join(NAMES)}; "
        "or the path of a .npy, .npz, .txt, .csv or .smi file or of a folder of images, texts or "
        "counts"
    )
