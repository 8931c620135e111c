"""Which rows of text are molecules: by the way they are written, and by rdkit."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from pyro_vae.datasets.splitters import Molecules

__all__ = ["faults", "molecule"]


def faults(texts: Sequence[str], splitter: Molecules) -> dict[int, str]:
    """Return what is wrong with those texts that are no molecules, by place.

    The splitter looks at how they are written. Where rdkit is installed, it looks at the molecule:
    valences, and rings that cannot be aromatic.
    """
    looks_closer = importlib.util.find_spec("rdkit") is not None
    found = {}
    for place, text in enumerate(texts):
        try:
            splitter.split(text)
        except ValueError as error:
            found[place] = str(error)
            continue
        if looks_closer and (problem := _problem(text)):
            found[place] = problem
    return found


def _problem(smiles: str) -> str:
    """Return what rdkit says against a molecule; nothing if it is one."""
    from rdkit import Chem, rdBase

    if molecule(smiles) is not None:
        return ""
    with rdBase.BlockLogs():
        as_written = Chem.MolFromSmiles(smiles, sanitize=False)
        problems = () if as_written is None else Chem.DetectChemistryProblems(as_written)
        return problems[0].Message() if problems else "no molecule that rdkit reads"


def molecule(smiles: str) -> Any | None:
    """Return rdkit's molecule of SMILES; None where there is none, or it has no atom.

    Raises:
        ValueError: If rdkit is not installed.
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise ValueError(
            "rdkit, which knows molecules, is not installed: pip install 'pyro-vae[molecules]'"
        ) from None
    with rdBase.BlockLogs():
        found = Chem.MolFromSmiles(smiles)
    return found if found is not None and found.GetNumAtoms() else None
