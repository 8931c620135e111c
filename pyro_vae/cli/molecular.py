"""What a run of molecules makes of them: its numbers, and pictures that rdkit draws."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro_vae.evaluation as evaluation
from pyro_vae import molecules
from pyro_vae.cli.attempts import Failure, attempted, optional
from pyro_vae.cli.runs import Run
from pyro_vae.cli.sentences import texts_of_rows
from pyro_vae.datasets import Vocabulary
from pyro_vae.datasets.splitters import Molecules
from pyro_vae.files import own_folder, replace_file
from pyro_vae.wording import warn

__all__ = ["draw", "numbers", "said"]

_NUM_SAMPLES = 1_000
_NUM_RECONSTRUCTED = 1_000
_NUM_DRAWN = 12
_NUM_STEPS = 8
_COLUMNS = 4
_FEW = 0.01  # molecules that come back: the latents tell next to nothing


def numbers(run: Run) -> dict[str, Any]:
    """Return what a run's molecules are like, by name; nothing of a run of other data."""
    vocabulary = _vocabulary(run)
    if vocabulary is None:
        return {}
    if importlib.util.find_spec("rdkit") is None:
        warn("rdkit, which judges and draws molecules, is not installed: pip install "
             "'pyro-vae[molecules]'")  # fmt: skip
        return {}
    found = optional("what samples are like", lambda: _of_samples(run, vocabulary)) or {}
    return found | (optional("what comes back", lambda: _of_test(run, vocabulary)) or {})


def said(found: Mapping[str, Any]) -> list[str]:
    """Say of molecules that are valid without the latents that they are."""
    valid, same = found.get("valid_share"), found.get("same_molecule_share")
    if valid is None or same is None or same >= _FEW or valid <= same:
        return []
    return [
        f"that {100 * valid:.1f} % of the samples are molecules says nothing of the latents: "
        f"{100 * same:.1f} % of the test data come back from theirs; a decoder that ignores them "
        "can write molecules, too"
    ]


def _vocabulary(run: Run) -> Vocabulary | None:
    found = run.data.vocabulary
    return found if found is not None and isinstance(found.splitter, Molecules) else None


def _of_samples(run: Run, vocabulary: Vocabulary) -> dict[str, Any]:
    training, held_out = run.data.train.x, run.data.test.x
    found = molecules.sample_quality(
        _samples(run, vocabulary, _NUM_SAMPLES),
        [] if run.on_other_data else vocabulary.decode(training),
        vocabulary.decode(held_out[:_NUM_SAMPLES]),
    )
    return {
        "num_sampled_molecules": _NUM_SAMPLES,
        **_share("valid", found.valid),
        **_share("unique", found.unique),
        **({} if run.on_other_data else _share("novel", found.novel)),
        "internal_diversity": found.internal_diversity,
        "property_distance": found.distance,
        "property_mean": found.property_means,
    }


def _of_test(run: Run, vocabulary: Vocabulary) -> dict[str, Any]:
    data, likeliest, drawn = _reconstructed(run, vocabulary, _NUM_RECONSTRUCTED)
    found = molecules.recovery(data, likeliest)
    of_draws = molecules.recovery(data, drawn)
    return {
        **_share("same_smiles", found.same_smiles),
        **_share("same_molecule", found.same_molecule),
        **_share("drawn_same_molecule", of_draws.same_molecule),
        **_share("drawn_valid", of_draws.valid),
        "num_reconstructed_molecules": len(data),
    }


def _share(name: str, found: evaluation.Estimate) -> dict[str, float]:
    return {f"{name}_share": found.value, f"{name}_share_standard_error": found.standard_error}


def _samples(run: Run, vocabulary: Vocabulary, number: int) -> list[str]:
    found = evaluation.prior_samples(
        run.program.model, run.rows_like(None), number, stochastic=True
    )
    return texts_of_rows(found, vocabulary)


def _reconstructed(
    run: Run, vocabulary: Vocabulary, number: int
) -> tuple[list[str], list[str], list[str]]:
    """Return test data, their likeliest reconstructions from the mean of z, and draws."""
    rows, program = run.test_rows()[:number], run.program
    likeliest = evaluation.reconstruct(run.typical_model, program.guide, rows)
    drawn = evaluation.reconstruct(program.model, program.guide, rows, stochastic=True)
    texts = (texts_of_rows(found, vocabulary) for found in (likeliest, drawn))
    first, second = texts
    return vocabulary.decode(rows.x.cpu()), first, second


# Pictures -------------------------------------------------------------------------------------


def draw(run: Run, folder: Path) -> list[tuple[str, Path | str]]:
    """Draw a run's molecules into a folder; return captions and paths, see ``pictures.draw``."""
    vocabulary = _vocabulary(run)
    if vocabulary is None or importlib.util.find_spec("rdkit") is None:
        return []
    drawn: list[tuple[str, Path | str]] = []
    for name, caption, make in _pictures(run, vocabulary):
        content = attempted(f"the picture {name!r}", make)
        if isinstance(content, Failure):
            drawn.append((caption, f"This picture could not be drawn: {content}"))
            continue
        own_folder(folder)
        replace_file(folder / f"{name}.png", content)
        drawn.append((caption, folder / f"{name}.png"))
    return drawn


def _pictures(run: Run, vocabulary: Vocabulary) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    yield (
        "molecules_samples",
        "Molecules drawn from the model: z from the prior, x from p(x | z)",
        lambda: molecules.grid(_samples(run, vocabulary, _NUM_DRAWN), columns=_COLUMNS),
    )
    yield (
        "molecules_reconstructions",
        "Test data, each with what the likeliest symbols make of the mean of its latents",
        lambda: _drawn_pairs(run, vocabulary),
    )
    yield (
        "molecules_between",
        "Between the posterior means of two test data, from left to right and down",
        lambda: _drawn_between(run, vocabulary),
    )


def _drawn_pairs(run: Run, vocabulary: Vocabulary) -> bytes:
    data, likeliest, _ = _reconstructed(run, vocabulary, _NUM_DRAWN)
    smiles = [each for pair in zip(data, likeliest, strict=True) for each in pair]
    legends = [each for a, b in zip(data, likeliest, strict=True)
               for each in ("test", "the same" if a == b else "of its latents")]  # fmt: skip
    return molecules.grid(smiles, legends, columns=_COLUMNS)


def _drawn_between(run: Run, vocabulary: Vocabulary) -> bytes:
    rows = run.test_rows()
    found = evaluation.interpolate(
        run.typical_model, run.program.guide, rows[:1], rows[-1:], num_steps=_NUM_STEPS
    )
    by_site = found if isinstance(found, Mapping) else {"": found}
    flat = {name: values.flatten(0, 1) for name, values in by_site.items()}
    return molecules.grid(texts_of_rows(flat, vocabulary), columns=_COLUMNS)
