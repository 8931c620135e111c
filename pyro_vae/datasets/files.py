"""A user's own files: .npy and .npz arrays, and folders of images."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pyro_vae import memory
from pyro_vae.datasets import archives
from pyro_vae.datasets.arrays import Dataset, from_arrays, from_splits

__all__ = ["load_file", "load_folder"]

_IMAGE_SUFFIXES = set(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .ppm .pgm".split())  # noqa: SIM905
_PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


def load_file(path: Path) -> Dataset:
    """Load a `.npy` or `.npz` file; see `load` for what each may hold."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{path}: expected a .npy or .npz file or a folder of images; "
            "numpy.save writes the first from any array"
        )
    read = _read_npy if path.suffix == ".npy" else _read_npz
    magic = b"\x93NUMPY" if path.suffix == ".npy" else b"PK"
    with path.open("rb") as file:
        start = file.read(len(magic))
    if start != magic:
        found = f"starts with {start!r}" if start else "is empty"
        raise ValueError(f"{path}: not a {path.suffix} file, it {found}; save the array again")
    try:
        # A hostile header can overflow numpy's own size arithmetic, which only warns.
        with np.errstate(over="ignore"):
            arrays = read(path)
    except memory.TooLargeError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        raise ValueError(_damage(path, error)) from None
    return (
        from_arrays(*arrays.values(), name=path.name)
        if path.suffix == ".npy"
        else _from_npz(path, arrays)
    )


def _damage(path: Path, error: Exception) -> str:
    reason = reason_of(error)
    if "bject" in reason and ("llow_pickle" in reason or "memory-mapped" in reason):
        return (
            f"{path}: contains pickled objects, which are never loaded: "
            "save it as a plain numeric array"
        )
    if isinstance(error, MemoryError):
        return f"{path}: its header claims more data than fit in memory ({reason}); save it again"
    return f"{path}: truncated or corrupt ({reason}); save the array again"


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    # Mapping first, whatever the size: the header's claim is then held against the file's length
    # before anything is allocated.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.nbytes <= memory.MAPPED_BYTES:
        return {"x": np.array(array)}
    _warn_of_order(path, array)
    return {"x": array}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    return archives.arrays(path)


def _warn_of_order(path: Path, array: np.ndarray) -> None:
    warnings.warn(
        f"{path.name} ({array.nbytes / 2**30:.1f} GiB) stays on disk and is split in file order "
        "(first 80 % training, last 10 % test): shuffle its rows once if they are sorted",
        stacklevel=6,
    )


def _from_npz(path: Path, arrays: dict[str, np.ndarray]) -> Dataset:
    parts = _part_names(arrays, str(path))
    if parts is not None:
        labels = {part: _first(arrays, f"{key}_labels", f"{key}_y") for part, key in parts.items()}
        if len({key is None for key in labels.values()}) > 1:
            raise ValueError(f"{path}: labels for some splits only; give all three or none")
        weights = {part: arrays.get(f"{key}_weights") for part, key in parts.items()}
        splits = {p: (arrays[k], arrays.get(labels[p] or ""), weights[p]) for p, k in parts.items()}
        return from_splits(path.name, splits)
    others = [name for name in arrays if name != "weights"]
    key = _first(arrays, "x", "images", "data") or (others[0] if len(others) == 1 else None)
    if key is None:
        raise ValueError(
            f"{path}: holds {', '.join(arrays) or 'no arrays'}; expected train, validation and "
            "test, or x (images, data) with y (labels) and weights, or a single array"
        )
    if isinstance(arrays[key], np.memmap):
        _warn_of_order(path, arrays[key])
    classes = arrays.get(_first(arrays, "y", "labels") or "")
    return from_arrays(arrays[key], classes, weights=arrays.get("weights"), name=path.name)


def _part_names(found: Collection[str], where: str) -> dict[str, str] | None:
    """Which name stands for which split; None where the names are not those of splits."""
    names = {part: _first(found, *aliases) for part, aliases in _PARTS.items()}
    missing = [part for part, name in names.items() if name is None]
    if len(missing) > 1:
        return None
    if missing:
        raise ValueError(f"{where}: no {missing[0]} split beside the other two; add one")
    return {part: name for part, name in names.items() if name is not None}


def load_folder(folder: Path) -> Dataset:
    """Load a folder of images, with its subfolders as labels or as splits."""
    parts = _part_names({p.name for p in folder.iterdir() if p.is_dir()}, str(folder))
    if parts is None:
        images, labels = _read_images(folder)
        return from_arrays(images, labels, name=folder.resolve().name)
    splits = {part: _read_images(folder / name) for part, name in parts.items()}
    return from_splits(folder.resolve().name, splits)


def _read_images(folder: Path) -> tuple[np.ndarray, list[str] | None]:
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not names:
        raise ValueError(f"{folder}: no images in it; expected PNG, JPEG or other image files")
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    if classes and any("/" not in name for name in names):
        raise ValueError(
            f"{folder}: images both beside and inside subfolders ({classes[0]}, ...); subfolders "
            "are class labels: put every image into one, or none"
        )
    first = _read_image(folder / names[0])
    images = np.empty((len(names), *first.shape), first.dtype)
    for row, name in enumerate(names):
        image = _read_image(folder / name)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise ValueError(
                f"{folder}: {name} is {_described(image)} but {names[0]} is {_described(first)}; "
                "bring all images to one size and mode"
            )
        images[row] = image
    return images, [name.split("/")[0] for name in names] if classes else None


def _read_image(path: Path) -> np.ndarray:
    """Pixels of shape `(C, H, W)`."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # each decoder of PIL has errors of its own
        raise ValueError(f"{path}: cannot be read as an image ({reason_of(error)})") from None
    if mode not in ("1", "L", "RGB", "RGBA"):
        raise ValueError(f"{path}: image mode {mode}; convert it to L (grey) or RGB")
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _described(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} with {channels} channel{'s' * (channels > 1)} of {image.dtype}"


def _first(found: Collection[str], *names: str) -> str | None:
    return next((name for name in names if name in found), None)


def reason_of(error: Exception) -> str:
    """An exception's text on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
