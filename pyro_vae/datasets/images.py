"""Folders of images: which files belong to them, and the pixels of each as they are stored."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import memory

__all__ = ["is_image", "pixels", "read_images", "visible", "walk"]

_SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp",
     ".ppm", ".pgm")
)  # fmt: skip
_NOT_READ = frozenset(
    (".heic", ".heif", ".avif", ".jp2", ".tga", ".psd", ".exr", ".hdr", ".svg", ".eps", ".ico",
     ".dcm", ".raw", ".cr2", ".nef", ".dng")
)  # fmt: skip
# By content, whatever a file's name says: PIL's other decoders run scripts (EPS) or other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_CURES = {
    "P": "image mode P; convert it to RGB, which keeps every colour of the palette",
    "PA": "image mode PA; convert it to RGBA, which keeps every colour of the palette",
    "LA": "image mode LA, grey with transparency; put it on a background and convert it to L, or "
    "keep both by converting it to RGBA",
    "CMYK": "image mode CMYK, the colours of a press; convert it to RGB",
    "YCbCr": "image mode YCbCr; convert it to RGB",
}
_MODES = ("1", "L", "RGB", "RGBA", "I", "F")


def read_images(folder: Path) -> tuple[np.ndarray, list[str] | None]:
    """Read all images below a folder, in sorted order; subfolders are classes.

    Hidden files and folders and those of no image are left out. Links are followed.

    Returns:
        Pixels `[N, C, H, W]`, as stored: bool, uint8, uint16, int32 or float32; and the folder of
        each image, or None.

    Raises:
        ValueError: no images; images beside and inside subfolders, of several sizes or modes, of
            several pages; files that are no images, whatever they are called.
    """
    names = _names(folder)
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    if classes and any("/" not in name for name in names):
        raise ValueError(
            f"{folder}: images both beside and inside subfolders ({classes[0]}, ...); subfolders "
            "are class labels: put every image into one, or none"
        )
    first = _read(folder / names[0])
    images = memory.room((len(names), *first.shape), first.dtype)
    for row, name in enumerate(names):
        image = _read(folder / name)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise ValueError(
                f"{folder}: {name} is {_described(image)} but {names[0]} is {_described(first)}; "
                "bring all images to one size and mode"
            )
        images[row] = image
    return images, [name.split("/")[0] for name in names] if classes else None


def _names(folder: Path) -> list[str]:
    """The images below a folder, by their paths from it, sorted."""
    found = sorted(walk(folder))
    left_out = Counter(Path(name).suffix.lower() for name in found)
    unread = {suffix: count for suffix, count in left_out.items() if suffix in _NOT_READ}
    names = [name for name in found if Path(name).suffix.lower() in _SUFFIXES]
    if unread:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
        if not names:
            raise ValueError(
                f"{folder}: no images in it that can be read, but {listed}; convert them to PNG"
            )
        warnings.warn(
            f"{folder}: {listed} files cannot be read and are left out; convert them to PNG",
            stacklevel=6,
        )
    if not names:
        raise ValueError(
            f"{folder}: no images or texts in it; expected PNG, JPEG or other image files, or "
            ".txt files"
        )
    return names


def is_image(name: str) -> bool:
    """Tell whether a file is an image by its name, of a kind that is read or not."""
    return Path(name).suffix.lower() in _SUFFIXES | _NOT_READ


def walk(folder: Path) -> list[str]:
    """All files below a folder that are not hidden, also through links, which may lead back."""
    found: list[str] = []

    def enter(place: Path, inner: str, above: tuple[Path, ...]) -> None:
        for path in visible(place):
            if path.resolve() in above:
                continue
            if path.is_dir():
                enter(path, f"{inner}{path.name}/", (*above, path.resolve()))
            elif path.is_file() or not path.exists():  # a link that leads nowhere is reported
                found.append(f"{inner}{path.name}")

    enter(folder, "", (folder.resolve(),))
    return found


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what systems hide there."""
    hidden = (".", "__MACOSX")
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(hidden)]


def _read(path: Path) -> np.ndarray:
    from PIL import Image

    Image.init()
    try:
        with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            return pixels(image, str(path))
    except _UnusableError:
        raise
    except Exception as error:  # each decoder of PIL has errors of its own
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as an image ({reason})") from None


class _UnusableError(ValueError):
    """An image that can be read, but not without a decision that is the user's."""


def pixels(image: Any, where: str) -> np.ndarray:
    """Pixels `(C, H, W)` of one of PIL's images, as stored, turned upright as viewers show it.

    Raises:
        ValueError: several pages; a mode whose numbers are no intensities; 16 bits a colour, of
            which PIL keeps 8.
    """
    from PIL import ImageOps

    num_pages = getattr(image, "n_frames", 1)
    if num_pages > 1 and image.format != "MPO":  # of which the others are previews and depth
        raise _UnusableError(
            f"{where}: holds {num_pages} pages (frames), and one image a file is read; save each "
            "as a file of its own, or all of them as one array with numpy.save"
        )
    if image.mode in _CURES:
        raise _UnusableError(f"{where}: {_CURES[image.mode]}")
    if not (image.mode in _MODES or image.mode.startswith("I;16")):
        raise _UnusableError(f"{where}: image mode {image.mode}; convert it to RGB")
    _refuse_rescaled(image, where)
    array = np.asarray(ImageOps.exif_transpose(image))
    if image.mode.startswith("I;16"):
        array = array.astype(np.uint16)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _refuse_rescaled(image: Any, where: str) -> None:
    """Refuse what PIL decodes to other numbers than are stored, as far as its decoders tell."""
    stored = [
        tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", ())
    ]
    deep = any(";16" in str(part) for parts in stored for part in parts)
    if deep and image.mode in ("L", "RGB", "RGBA"):
        raise _UnusableError(
            f"{where}: 16 bits a colour, of which this reader would keep 8; save the images as one "
            "array of uint16 with numpy.save"
        )
    largest = [parts[1] for parts in stored if image.format == "PPM" and len(parts) > 1]
    if any(isinstance(value, int) and value not in (1, 255) for value in largest):
        raise _UnusableError(
            f"{where}: its largest value is {largest[0]}, which this reader would rescale; save "
            "the images as one array of integers with numpy.save"
        )


def _described(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} with {channels} channel{'s' * (channels > 1)} of {image.dtype}"
