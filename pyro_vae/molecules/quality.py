"""Are molecules that a model writes valid, different, new, and like the data? And what is kept?

The definitions are those of MOSES. None of these numbers looks at the latents: a model that ignores
them (posterior collapse) may write valid and new molecules. Show mutual information beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pyro_vae.evaluation.estimates import Estimate, Result
from pyro_vae.molecules.chemistry import canonical, fingerprints, parsed, properties

__all__ = ["Recovery", "SampleQuality", "recovery", "sample_quality"]

_NUM_COMPARED = 1_000  # fingerprints each with each, and molecules whose distributions are compared


@dataclass(frozen=True, repr=False)
class SampleQuality(Result):
    r"""What molecules that a model writes are like; shares of one, with their standard errors.

    Attributes:
        valid: Samples that are molecules.
        unique: Valid samples that are different molecules, of all valid ones: more samples have
            fewer. NaN where none is valid, as are all that follow.
        unique_at_k: The same of the first k valid samples, by k.
        novel: Different molecules that are not among the training data.
        internal_diversity: :math:`1 - \frac{1}{M^2} \sum_{ij} T(m_i, m_j)`, T Tanimoto's similarity
            of fingerprints, of valid samples.
        distance: The Wasserstein distance of each property's distribution from that of held-out
            data, in units of the property.
        property_means: The mean of each property.
    """

    valid: Estimate
    unique: Estimate
    unique_at_k: dict[int, float]
    novel: Estimate
    internal_diversity: float
    distance: dict[str, float]
    property_means: dict[str, float]


def sample_quality(
    samples: Sequence[str],
    training: Collection[str],
    held_out: Sequence[str],
    *,
    at: Sequence[int] = (1_000, 10_000),
    names: Sequence[str] = ("logP", "QED", "SA"),
) -> SampleQuality:
    """Return what samples are like, as SMILES.

    Args:
        samples: From the prior, in the order of their draws.
        training: What the model was trained on, as SMILES; all of it, or novelty is too high.
        held_out: Data that it was not trained on; the first 1,000 are compared with the samples.
        at: For uniqueness at k; a k above the number of valid samples is left out.
        names: Of the properties whose distributions are compared.

    Raises:
        ValueError: If there is no sample, or rdkit is not installed.

    References:
        Molecular Sets (MOSES): A Benchmarking Platform for Molecular Generation Models
        (Polykovskiy et al., 2020)
    """
    if not len(samples):
        raise ValueError("samples: none; give at least one")
    molecules = [each for each in parsed(samples) if each is not None]
    written = [str(each) for each in canonical(molecules)]
    different = [*dict.fromkeys(written)]
    known = _known(different, training)
    compared = molecules[:_NUM_COMPARED]
    by_name = {name: properties(compared, name) for name in names}
    return SampleQuality(
        valid=_share(len(molecules), len(samples)),
        unique=_share(len(different), len(molecules)),
        unique_at_k={k: len({*written[:k]}) / k for k in at if k <= len(written)},
        novel=_share(sum(each not in known for each in different), len(different)),
        internal_diversity=internal_diversity(fingerprints(compared)),
        distance=_distances(by_name, held_out),
        property_means={name: _mean(found) for name, found in by_name.items()},
    )


def _known(different: Sequence[str], training: Collection[str]) -> set[str]:
    """Return which of some canonical SMILES are among the training data.

    To canonicalise all training data takes a minute or two for 250,000: only those are that may be
    one of the samples, by how often letters occur that every way to write a molecule shares.
    """
    wanted = {_letters(each) for each in different}
    near = [each for each in training if _letters(each) in wanted]
    return {each for each in canonical(parsed(near)) if each is not None}


_TAG = re.compile(r"@[A-Z]{2}\d+")  # such as @SP1, whose letters are no atoms


def _letters(smiles: str) -> tuple[int, ...]:
    """Return how often the letters of some atoms occur; aromatic ones are written small."""
    text = _TAG.sub("", smiles) if "@" in smiles else smiles
    text = text.upper()
    return tuple(map(text.count, ("C", "N", "O", "S", "F", "BR", "CL")))


def internal_diversity(bits: np.ndarray) -> float:
    """Return one less the mean similarity of all pairs of fingerprints, ``[M, bits]``."""
    if not len(bits):
        return math.nan
    found = torch.from_numpy(bits).float()
    shared = found @ found.T
    size = found.sum(1)
    either = size[:, None] + size[None, :] - shared
    return 1 - float((shared / either.clamp(min=1)).double().mean())


def _distances(by_name: Mapping[str, np.ndarray], held_out: Sequence[str]) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    data = [each for each in parsed(held_out[:_NUM_COMPARED]) if each is not None]
    return {
        name: float(wasserstein_distance(found, properties(data, name)))
        if len(found) and data
        else math.nan
        for name, found in by_name.items()
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _share(part: int, whole: int) -> Estimate:
    """Return a share with the standard error of as many independent draws."""
    if not whole:
        return Estimate(math.nan)
    share = part / whole
    return Estimate(share, math.sqrt(share * (1 - share) / whole))


# What comes back --------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Recovery(Result):
    """How many molecules come back from their latents; shares of one, with standard errors.

    Attributes:
        same_smiles: Written as they were, symbol by symbol.
        same_molecule: The same molecule, however it is written.
        valid: Molecules at all.
    """

    same_smiles: Estimate
    same_molecule: Estimate
    valid: Estimate


def recovery(data: Sequence[str], reconstructed: Sequence[str]) -> Recovery:
    """Return how many molecules come back, both as SMILES.

    Raises:
        ValueError: If there is none, or they are of different numbers, or rdkit is not installed.
    """
    if not len(data) or len(data) != len(reconstructed):
        raise ValueError(f"{len(data)} data and {len(reconstructed)} reconstructions: give pairs")
    was, now = canonical(parsed(data)), canonical(parsed(reconstructed))
    pairs = [*zip(was, now, strict=True)]
    same = sum(a == b for a, b in zip(data, reconstructed, strict=True))
    return Recovery(
        same_smiles=_share(same, len(data)),
        same_molecule=_share(sum(a == b and a is not None for a, b in pairs), len(data)),
        valid=_share(sum(each is not None for each in now), len(data)),
    )
