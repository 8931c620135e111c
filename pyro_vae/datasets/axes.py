"""Decide the axes of a user's array: a table, images, or as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["CHANNELS", "Axes", "as_given", "as_images"]

CHANNELS = (1, 3, 4)
"""How many channels an image has."""

Axes = Callable[[np.ndarray, str], np.ndarray]
"""From an array and its name in messages to `(N, *event_shape)`: `as_images` or `as_given`."""


def as_images(array: np.ndarray, where: str) -> np.ndarray:
    """Rows as tables or images: `(N, D)`, or `(N, C, H, W)` of which `(N, H, W)` has one channel.

    Raises:
        ValueError: any other shape; images with their channels last.
    """
    shape = array.shape
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 2 or (array.ndim == 4 and shape[1] in CHANNELS):
        return array
    if array.ndim == 0:
        raise ValueError(f"{where}: shape (), a single number; expected one row per datum")
    if array.ndim < 2:
        raise ValueError(
            f"{where}: shape {shape}, expected (N, ...): one row per datum; "
            "a single column is x.reshape(-1, 1)"
        )
    if array.ndim == 4 and shape[3] in CHANNELS:
        raise ValueError(
            f"{where}: shape {shape} reads as {shape[1]} channels of {shape[2]}x{shape[3]} pixels, "
            f"or as {shape[1]}x{shape[2]} images with {shape[3]} channels last; images are "
            "channel-first: use x.transpose(0, 3, 1, 2)"
        )
    raise ValueError(
        f"{where}: shape {shape}, expected (N, D), (N, H, W) or (N, C, H, W) with 1, 3 or 4 "
        "channels; x.reshape(len(x), -1) makes vectors of anything, and a program of your own "
        "takes rows of any shape as they are"
    )


def as_given(array: np.ndarray, where: str) -> np.ndarray:
    """Rows of any shape as they are: series `(N, T, C)`, volumes, `(N,)` single numbers.

    Raises:
        ValueError: a number alone.
    """
    if array.ndim == 0:
        raise ValueError(f"{where}: shape (), expected (N, ...): one row per datum")
    return array
