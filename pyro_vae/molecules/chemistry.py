"""What rdkit knows of molecules: canonical SMILES, properties, fingerprints; it says nothing aloud.

rdkit is imported when a function is called, and its messages about molecules that are none stay out
of the terminal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pyro_vae.datasets.molecules import molecule

__all__ = ["PROPERTIES", "canonical", "fingerprints", "parsed", "properties"]

_RADIUS, _NUM_BITS = 2, 1024


def parsed(smiles: Iterable[str]) -> list[Any | None]:
    """Return the molecule of each SMILES; None of what is none.

    Raises:
        ValueError: If rdkit is not installed.
    """
    return [molecule(each) for each in smiles]


def canonical(molecules: Iterable[Any | None]) -> list[str | None]:
    """Return one SMILES for each molecule, the same however it was written; None of None."""
    from rdkit import Chem

    return [None if each is None else Chem.MolToSmiles(each) for each in molecules]


# Properties -----------------------------------------------------------------------------------


def _log_p(molecule: Any) -> float:
    from rdkit.Chem import rdMolDescriptors

    return float(rdMolDescriptors.CalcCrippenDescriptors(molecule)[0])


def _drug_likeness(molecule: Any) -> float:
    from rdkit.Chem import QED

    return float(QED.qed(molecule))


def _accessibility(molecule: Any) -> float:
    return float(_scorer().calculateScore(molecule))


@functools.cache
def _scorer() -> Any:
    """Return what scores accessibility: among the contributions that rdkit's wheels ship.

    Raises:
        ValueError: If this rdkit is without them.
    """
    try:
        from rdkit.Contrib.SA_Score import sascorer
    except ImportError:
        raise ValueError(
            "this rdkit is without its contributions, among which SA is: pip install rdkit ships "
            "them"
        ) from None
    return sascorer


PROPERTIES: dict[str, Callable[[Any], float]] = {
    "logP": _log_p,
    "QED": _drug_likeness,
    "SA": _accessibility,
    "5 QED - SA": lambda molecule: 5 * _drug_likeness(molecule) - _accessibility(molecule),
}
"""By name, of one molecule of rdkit.

* logP: between octanol and water (Wildman & Crippen, 1999).
* QED: how much like a drug, 0 to 1 (Bickerton, Paolini, Besnard, Muresan & Hopkins, 2012).
* SA: how hard to make, 1 (easy) to 10 (Ertl & Schuffenhauer, 2009).
* 5 QED - SA: what Gomez-Bombarelli et al. (2018) search for.
"""


def properties(molecules: Sequence[Any], name: str) -> np.ndarray:
    """Return a property of molecules, ``[N]``.

    Args:
        molecules: Of rdkit, as from ``parsed``, none of them None.
        name: One of ``PROPERTIES``.

    Raises:
        ValueError: If there is no property of that name, or this rdkit cannot compute it.
    """
    if name not in PROPERTIES:
        raise ValueError(f"property {name!r}: known are {', '.join(PROPERTIES)}")
    return np.array([PROPERTIES[name](each) for each in molecules], dtype=np.float64)


# Fingerprints ---------------------------------------------------------------------------------


def fingerprints(molecules: Sequence[Any]) -> np.ndarray:
    """Return Morgan fingerprints of radius 2 and 1,024 bits, ``[N, 1024]`` of 0 and 1.

    References:
        Extended-Connectivity Fingerprints (Rogers & Hahn, 2010)
    """
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=_RADIUS, fpSize=_NUM_BITS)
    found = [generator.GetFingerprintAsNumPy(each) for each in molecules]
    return np.array(found, dtype=np.uint8).reshape(-1, _NUM_BITS)
