"""The arrays of a ``.npz`` archive, whose large ones stay on disk."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_vae import memory

__all__ = ["arrays"]

_CHUNK_BYTES = 2**24
_LOCAL_HEADER = struct.Struct("<26x2H")  # what counts here: how long the name and the rest are


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an archive, and hold it against its checksum.

    One above `MAPPED_BYTES` is mapped: in the archive where it is stored as it is, in a temporary
    file where it is compressed.

    Raises:
        TooLargeError: The others unfold to more than memory holds.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        small = sum(i.file_size for i in members.values() if i.file_size <= memory.MAPPED_BYTES)
        memory.refuse_beyond(small, f"{path.name}, unfolded,", "keep fewer arrays in one file")
        return {name: _member(path, archive, info) for name, info in members.items()}


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        if info.file_size <= memory.MAPPED_BYTES:
            return np.lib.format.read_array(stream, allow_pickle=False)
        shape, in_fortran_order, dtype = _header(stream)
        start, size = stream.tell(), math.prod(shape) * dtype.itemsize
        if size != info.file_size - start:
            raise ValueError(f"{info.filename} holds {info.file_size - start:,} bytes for {shape}")
        if info.compress_type == zipfile.ZIP_STORED:
            filled = None
        else:
            filled = memory.room((size,), np.dtype("u1"))
        for begin in range(0, size, _CHUNK_BYTES):
            read = stream.read(min(_CHUNK_BYTES, size - begin))
            if filled is not None:
                filled[begin : begin + len(read)] = np.frombuffer(read, "u1")
        stream.read(1)  # past the end, where the checksum is compared
    order: Any = "F" if in_fortran_order else "C"
    if filled is not None:
        return filled.view(dtype).reshape(shape, order=order)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    offset = info.header_offset + _LOCAL_HEADER.size + sum(lengths) + start
    return memory.mapped(np.memmap(path, dtype, "r", offset, shape, order))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read: Any = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, in_fortran_order, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return shape, in_fortran_order, dtype
