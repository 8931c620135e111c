"""Documents as bags of words: how often each word occurs, whatever the order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro_vae.datasets.containers import Given
from pyro_vae.datasets.data import Data
from pyro_vae.datasets.text import Reading
from pyro_vae.wording import option, warn

__all__ = ["counted", "rows_with_words", "with_a_word"]

_LARGEST_SHARE = 0.5  # of the documents; what is in more of them tells them not apart


def counted(
    parts: Mapping[str, Given],
    name: str,
    reading: Reading,
    training: Callable[[int], Sequence[int]],
) -> tuple[dict[str, Given], tuple[str, ...]]:
    """Return parts with sparse counts of words as x, and the words by column.

    Words are those of scikit-learn's ``CountVectorizer``: two letters or digits or more, in lower
    case. Those in more than half of the training documents are left out.

    Args:
        parts: By what messages call them, those for training first; x is a list of texts.
        name: What messages call all of them.
        reading: How they are read.
        training: Which of so many rows of the first part are for training.

    Raises:
        ValueError: If no word is left.
    """
    from sklearn.feature_extraction.text import CountVectorizer  # takes a while to import

    first = next(iter(parts.values()))["x"]
    texts = first if reading.words is not None else [first[row] for row in training(len(first))]
    fewest = 1 if reading.words is not None else reading.min_documents or 1
    if fewest > len(texts):
        raise ValueError(
            f"{option('min_documents', fewest)}: there are {len(texts):,} training documents; give "
            "fewer"
        )
    vectorizer = CountVectorizer(
        vocabulary=reading.words,
        stop_words=reading.stop_words,
        max_features=reading.max_symbols,
        min_df=fewest,
        max_df=max(fewest, int(_LARGEST_SHARE * len(texts))),
        dtype=np.int32,
    )
    try:
        vectorizer.fit(texts)
    except ValueError:
        raise ValueError(
            f"{name}: no word is left to count in {len(texts):,} training documents: each is a "
            f"stop word, or in fewer than {fewest} ({option('min_documents')}) or more than half "
            "of them; give more texts"
        ) from None
    counts = {where: vectorizer.transform(given["x"]) for where, given in parts.items()}
    words = tuple(map(str, vectorizer.get_feature_names_out()))
    return {where: {**given, "x": counts[where]} for where, given in parts.items()}, words


def with_a_word(data: Data) -> Data:
    """Return the documents that have a word; warns of how many have none.

    Raises:
        ValueError: If none has.
    """
    rows = rows_with_words(data.x.numpy(), None, "documents")
    return data if rows is None else data[rows]


def rows_with_words(x: np.ndarray, rows: Any, where: str) -> Any:
    """Return which of some rows of bags, ``[N, V]``, have a word; warns of how many have none.

    Args:
        x: Counts, ``[N, V]``.
        rows: Numbers of rows, or None for all.
        where: What messages call them.

    Raises:
        ValueError: If none has.
    """
    chosen = np.arange(len(x)) if rows is None else np.asarray(rows)
    kept = chosen[np.asarray(x[chosen]).any(1)]
    if not len(kept):
        raise ValueError(f"{where}: none of {len(chosen):,} documents has a word that is counted")
    if len(kept) < len(chosen):
        left_out = len(chosen) - len(kept)
        warn(f"{where}: {left_out:,} of {len(chosen):,} documents have no word that is counted: "
             "left out")  # fmt: skip
    return rows if rows is None and len(kept) == len(chosen) else torch.from_numpy(kept)
