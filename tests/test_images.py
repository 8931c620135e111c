"""Folders of images: which files are read, as which pixels, and what cannot be read as it is."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.datasets import Dataset, from_arrays, load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4, 5)).astype("u1")
GREY[0, 0, 0] = 255
DEEP = (257 * GREY.astype("i4")).astype("u2")
COLOUR = RNG.integers(0, 256, (6, 4, 5, 3)).astype("u1")


def rows(data: Dataset) -> torch.Tensor:
    x = torch.cat([part.x for part in (data.train, data.validation, data.test)])
    return x[x.flatten(1)[:, 0].argsort(stable=True)]


def chunk(kind: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sum_


def png(width: int, height: int, depth: int, colour: int, row: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + b"".join(
        chunk(kind, content)
        for kind, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


# What is saved, under which suffix -> the pixels that are read.
STORED = {
    "grey PNG": (GREY, ".png", GREY[:, None]),
    "grey PNG in capitals": (GREY, ".PNG", GREY[:, None]),
    "grey TIFF": (GREY, ".tif", GREY[:, None]),
    "grey BMP": (GREY, ".bmp", GREY[:, None]),
    "colour WEBP": (COLOUR, ".webp", COLOUR.transpose(0, 3, 1, 2)),
    "colour PNG": (COLOUR, ".png", COLOUR.transpose(0, 3, 1, 2)),
    "16-bit PNG": (DEEP, ".png", DEEP[:, None]),
    "16-bit TIFF": (DEEP, ".tiff", DEEP[:, None]),
    "32-bit TIFF": (DEEP.astype("i4"), ".tif", DEEP[:, None]),
    "float TIFF": (GREY.astype("f4") / 7, ".tif", GREY[:, None].astype("f4") / 7),
    "black and white": (GREY > 99, ".png", (GREY > 99)[:, None]),
}


@pytest.mark.parametrize("kind", STORED)
def test_pixels_are_read_as_they_are_stored(tmp_path: Path, kind: str) -> None:
    images, suffix, want = STORED[kind]
    for number, image in enumerate(images):
        options = {"lossless": True} if suffix == ".webp" else {}
        Image.fromarray(image).save(tmp_path / f"{number}{suffix}", **options)
    found = load(tmp_path)
    wanted = torch.from_numpy(want.astype("f8"))
    order = wanted.flatten(1)[:, 0].argsort(stable=True)
    if kind != "black and white":
        assert torch.equal(rows(found).double(), wanted[order])
    assert sorted(r.numpy().tobytes() for r in rows(found).double()) == sorted(
        r.numpy().tobytes() for r in wanted
    )
    levels = {"16-bit": 65535, "32-bit": 65535, "float ": None, "black ": 1}
    assert found.levels == levels.get(kind[:6], 255)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_photos_are_turned_as_viewers_show_them(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((8, 8), "u1")
    upright[:4] = 200
    turned = {1: 0, 3: 180, 6: 90, 8: 270}  # EXIF's orientation: how far the sensor was turned
    for orientation, degrees in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(upright).rotate(degrees, expand=True)
        image.save(tmp_path / f"{orientation}{suffix}", exif=exif)
    found = rows(load(tmp_path))
    assert bool((found[:, 0, :4] > 150).all())
    assert bool((found[:, 0, 4:] < 50).all())


def save(folder: Path, name: str, image: Image.Image, **options) -> None:
    for number in range(3):
        image.save(folder / f"{number}{name}", **options)


def pages(folder: Path, name: str) -> None:
    frames = [Image.fromarray(GREY[row]) for row in range(3)]
    save(folder, name, frames[0], save_all=True, append_images=frames[1:])


def write(folder: Path, name: str, content: bytes) -> None:
    for number in range(3):
        (folder / f"{number}{name}").write_bytes(content)


REFUSED = {
    "pages of TIFF": (lambda f: pages(f, ".tif"), "holds 3 pages (frames)"),
    "frames of GIF": (lambda f: pages(f, ".gif"), "holds 3 pages (frames)"),
    "frames of PNG": (lambda f: pages(f, ".png"), "holds 3 pages (frames)"),
    "frames of WEBP": (lambda f: pages(f, ".webp"), "holds 3 pages (frames)"),
    "palette": (
        lambda f: save(f, ".png", Image.fromarray(COLOUR[0]).quantize(9)), "convert it to RGB,"
    ),
    "transparent grey": (lambda f: save(f, ".png", Image.new("LA", (4, 4))), "image mode LA"),
    "press": (lambda f: save(f, ".tif", Image.new("CMYK", (4, 4))), "image mode CMYK"),
    "16 bits of RGB": (lambda f: write(f, ".png", png(2, 2, 16, 2, bytes(12))), "would keep 8"),
    "16 bits of RGBA": (lambda f: write(f, ".png", png(2, 2, 16, 6, bytes(16))), "would keep 8"),
    "10 bits of PGM": (
        lambda f: write(f, ".pgm", b"P5 2 2 1023\n" + bytes(8)), "largest value is 1023"
    ),
    "PostScript": (
        lambda f: write(f, ".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "cannot be read as an image",
    ),
    "PSD": (lambda f: write(f, ".png", b"8BPS" + bytes(60)), "cannot be read as an image"),
    "web page": (lambda f: write(f, ".png", b"<html>404</html>"), "cannot be read as an image"),
    "nothing": (lambda f: write(f, ".png", b""), "cannot be read as an image"),
    "link to nothing": (lambda f: (f / "a.png").symlink_to(f / "gone.png"), "cannot be read as an"),
    "photos of phones": (lambda f: write(f, ".HEIC", b"x"), "no images in it that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_as_it_is_stored_is_told_with_a_cure(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    make(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def fill(folder: Path, start: int = 0, count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        Image.fromarray(np.full((4, 4), number, "u1")).save(folder / f"{number}.png")


def test_files_that_no_one_meant_to_be_data_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 0)
    fill(tmp_path / "dog", 3)
    for junk in ("._0.png", ".DS_Store", "Thumbs.db", "notes.txt", "desktop.ini", "x.npy"):
        (tmp_path / "cat" / junk).write_bytes(b"junk")
        (tmp_path / junk).write_bytes(b"junk")
    fill(tmp_path / ".cache", 90)
    fill(tmp_path / "__MACOSX" / "cat", 90)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    found = load(tmp_path)
    assert found.classes == ("cat", "dog")
    assert sorted(rows(found)[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", 0, 6)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    (tmp_path / "pets" / "cow").symlink_to(tmp_path / "elsewhere")
    for number in range(6):
        name = ("cat", "dog")[number % 2]
        (tmp_path / "pets" / name / f"{number}.png").symlink_to(
            tmp_path / f"elsewhere/{number}.png"
        )
    found = load(tmp_path / "pets")
    assert found.classes == ("cat", "cow", "dog")
    assert len(rows(found)) == 12


def test_an_outer_folder_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "pets" / "1", 0)
    fill(tmp_path / "pets" / "pets" / "10", 3)
    fill(tmp_path / "pets" / "pets" / "2" / "deeper", 6)
    found = load(tmp_path / "pets")
    assert found.classes == ("1", "2", "10"), "numbers are in the order of numbers"
    assert found.name == "pets"


@pytest.mark.parametrize(
    "names", ["Train VAL Test", "training dev testing", "train valid test", "train validation test"]
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, names: str) -> None:
    for place, name in enumerate(names.split()):
        fill(tmp_path / name, 10 * place)
    found = load(tmp_path)
    starts = [int(part.x.min()) for part in (found.train, found.validation, found.test)]
    assert starts == [0, 10, 20]


def test_a_split_with_two_names_or_a_folder_beside_splits_is_told(tmp_path: Path) -> None:
    for place, name in enumerate(("train", "val", "test", "extra")):
        fill(tmp_path / name, 10 * place)
    with pytest.warns(UserWarning, match="extra beside train, val, test is left out"):
        load(tmp_path)
    fill(tmp_path / "valid")
    with pytest.raises(ValueError, match="names of one split"):
        load(tmp_path)


def test_images_of_formats_that_are_not_read_are_told(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "b.heic").write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=re.escape("1 .heic files cannot be read and are left out")
    ):
        load(tmp_path)


def test_splits_that_share_rows_are_told_with_their_number(tmp_path: Path) -> None:
    x = RNG.normal(size=(40, 3)).astype("f4")
    np.savez(tmp_path / "x.npz", x_train=x[:30], x_val=x[30:35], x_test=x[25:40])
    with pytest.warns(UserWarning, match=r"5 of 15 test rows stand in the training data"):
        load(tmp_path / "x.npz")
    # Rows of few bits coincide by themselves.
    bits = RNG.integers(0, 2, (300, 3))
    np.savez(tmp_path / "bits.npz", train=bits[:200], valid=bits[200:250], test=bits[250:])
    load(tmp_path / "bits.npz")
    for name in ("train", "val", "test"):
        fill(tmp_path / "pets" / name, 7)
    with pytest.warns(UserWarning, match="3 of 3") as caught:
        load(tmp_path / "pets")
    assert len(caught) == 2


@pytest.mark.parametrize("low", [0, -1])
@pytest.mark.parametrize("levels", [255, 65535])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_pixels_that_were_divided_by_their_levels_are_integers_again(tmp_path, levels, dtype, low):
    k = RNG.integers(0, levels + 1, (30, 4, 5))
    k[0, 0, :2] = 0, levels
    np.save(tmp_path / "x.npy", (low + (1 - low) * k / levels).astype(dtype))
    np.save(tmp_path / "k.npy", k)
    found = load(tmp_path / "x.npy")
    if levels == 65535 and dtype == "f2":
        assert found.levels is None, "16 bits do not hold these"
    else:
        assert found.fingerprint() == load(tmp_path / "k.npy").fingerprint()
        assert found.levels == levels


REAL = {
    "not of a grid": lambda: RNG.random((30, 4, 5)),
    "beyond 1": lambda: RNG.integers(0, 300, (30, 4, 5)) / 255,
    "with a hole": lambda: np.where(np.arange(20).reshape(4, 5) == 3, np.nan, GREY / 255),
    "a table": lambda: RNG.integers(0, 256, (30, 4)) / 255,
    "another grid": lambda: GREY / 100 - 1,
    "two values": lambda: np.where(GREY > 99, 1.0, -1.0),
    "centred": lambda: (GREY / 255 - 0.13) / 0.31,
}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_parts_on_two_scales_are_refused(tmp_path: Path, part: str) -> None:
    parts = {name: RNG.integers(0, 256, (30, 4, 5)) for name in ("train", "validation", "test")}
    np.savez(tmp_path / "x.npz", **parts | {part: RNG.random((30, 4, 5))})
    with pytest.raises(ValueError, match=f"{part} fractions up to .*bring all parts to one scale"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", REAL)
def test_other_floats_stay_floats(tmp_path: Path, kind: str) -> None:
    x = REAL[kind]()
    x = np.concatenate([x] * 3) if len(x) < 3 else x
    np.save(tmp_path / "x.npy", x)
    found = load(tmp_path / "x.npy")
    assert found.levels is None
    assert found.train.x.dtype == torch.float32


def test_integers_that_float32_does_not_hold_are_told() -> None:
    stamps = 1_700_000_000 + np.arange(30).reshape(30, 1)
    for x in (stamps, -stamps, np.ma.array(stamps, mask=stamps % 7 == 0)):
        with pytest.warns(UserWarning, match="cannot tell apart the values of column 0"):
            from_arrays(x)
    from_arrays(stamps - stamps.min())
    from_arrays(2**20 * np.arange(30).reshape(30, 1))


def test_a_constant_loses_no_digits() -> None:
    from_arrays(np.column_stack([np.full(6, 41 / 255), np.arange(6) / 7]))
