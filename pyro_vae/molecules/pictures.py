"""Pictures of molecules, drawn by rdkit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_vae.molecules.chemistry import parsed

__all__ = ["grid"]

_PANEL = (260, 200)  # pixels
_LONGEST = 34  # characters below a panel


def grid(smiles: Sequence[str], legends: Sequence[str] = (), *, columns: int = 4) -> bytes:
    """Return a PNG picture of molecules in rows; a panel of what is no molecule says so.

    Args:
        smiles: Of each molecule, from the left to the right.
        legends: What stands below each; nothing unless given.
        columns: How many molecules a row has.

    Raises:
        ValueError: If there is no molecule to draw, or rdkit is not installed.
    """
    from rdkit import rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    if not len(smiles):
        raise ValueError("smiles: none; give at least one")
    molecules = parsed(smiles)
    said = [*legends, *[""] * (len(smiles) - len(legends))]
    said = [_legend(*each) for each in zip(molecules, smiles, said, strict=True)]
    rows = -(-len(smiles) // columns)
    width, height = _PANEL
    canvas: Any = rdMolDraw2D.MolDraw2DCairo(width * columns, height * rows, width, height)
    canvas.drawOptions().legendFontSize = 18
    with rdBase.BlockLogs():
        canvas.DrawMolecules([each or _words() for each in molecules], legends=said)
        canvas.FinishDrawing()
    return bytes(canvas.GetDrawingText())


def _words() -> Any:
    """Return what is drawn in the place of a molecule: an atom that is called so."""
    from rdkit import Chem

    found = Chem.MolFromSmiles("*")
    found.GetAtomWithIdx(0).SetProp("atomLabel", "no molecule")
    return found


def _legend(molecule: Any | None, smiles: str, legend: str) -> str:
    if molecule is not None:
        return legend
    cut = f"{smiles[: _LONGEST - 3]}..." if len(smiles) > _LONGEST else smiles
    return f"{legend} {cut}".strip()
