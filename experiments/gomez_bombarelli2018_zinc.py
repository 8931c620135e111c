"""Do molecules come back from their latents, and are drawn ones valid? ZINC, SMILES and SELFIES.

    python experiments/gomez_bombarelli2018_zinc.py --scale smoke|cpu|paper --data_root FOLDER

Held against Automatic Chemical Design Using a Data-Driven Continuous Representation of Molecules
(Gomez-Bombarelli et al., 2018), by the numbers that Junction Tree Variational Autoencoder for
Molecular Graph Generation (Jin, Barzilay & Jaakkola, 2018) has of it on the same data: 44.6 % of
the test molecules come back, and 0.7 % of what is decoded from the prior is valid. SELFIES are of
Self-referencing embedded strings (Krenn et al., 2020), which are valid unless they are empty; no
number of theirs is held against here.

As published: ZINC-250k in the split of Jin et al., an encoder of convolutions over the symbols, a
decoder of GRUs. Otherwise than published, at every scale: each symbol is given those before it in
every layer of the decoder, where the paper's sees them in its last; symbols are atoms, not
characters; there are 56 latents, as Jin et al. have; Adam has a rate of 3e-3, the paper's 3.9e-4;
the KL has weight 0.005 as theirs, where the paper raises it to 1 from epoch 29, which with this
decoder makes it ignore z: the row of weight 1 shows that, and that its molecules look no worse for
it. What comes back is the likeliest symbols given the mean of z; the published 44.6 % are over ten
draws of z and ten of x for each molecule, the column of draws has one. No property is learned along
with the model: a Gaussian process learns it from the latents of a trained one, and the search
climbs it.

At the scale cpu only molecules of at most 30 symbols of SMILES take part, a sixth of all, the
networks are small and take 3,756 steps: too few for molecules to come back as the published ones
do, and nothing compares with the published numbers.
"""

from __future__ import annotations

import lzma
import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from study import ScaleName, Study, chosen
from torch import Tensor, nn

from pyro_vae import VAE, datasets, evaluation, fit, molecules
from pyro_vae.components import MLP, AutoregressiveSequence
from pyro_vae.components.networks import CausalRecurrent
from pyro_vae.datasets.splitters import Smiles
from pyro_vae.engine.optimizers import adam
from pyro_vae.evaluation import Drawing, Estimate
from pyro_vae.files import replace_file
from pyro_vae.inference import BetaVAE

_LATENTS = (56,)
_SEARCHED = "5 QED - SA"  # what the paper searches for
_NUM_STARTS, _NUM_SHOWN = 100, 12


class Scale(NamedTuple):
    """How much of the published protocol is run."""

    max_symbols: int
    num_train: int
    num_test: int
    epochs: int
    batch_size: int
    hidden: int
    num_layers: int
    num_samples: int
    num_fitted: int


class Row(NamedTuple):
    """A row of the table: how molecules are written, and what the KL weighs."""

    symbols: str
    beta: float = 0.005
    published_same: float | None = None
    published_valid: float | None = None

    @property
    def name(self) -> str:
        """What a picture of the row is called."""
        return self.symbols if self.beta < 1 else f"{self.symbols}_weight_{self.beta:g}"

    @property
    def published(self) -> dict[str, float]:
        """What was published, by the names of what is measured."""
        found = {"same_molecule_share": self.published_same, "valid_share": self.published_valid}
        return {name: value for name, value in found.items() if value is not None}


TABLE = {
    "SMILES": Row("smiles", published_same=0.446, published_valid=0.007),
    "SELFIES": Row("selfies"),
    "SMILES, KL weight 1": Row("smiles", beta=1.0),
}

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(30, 40, 10, 1, 20, 8, 1, 20, 20),
    "cpu": Scale(30, 20_000, 800, 12, 64, 128, 1, 1_000, 1_000),
    "paper": Scale(120, 220_010, 5_000, 70, 126, 488, 3, 1_000, 2_000),
}

COLUMNS = {
    "same_molecule_share": "molecules that come back",
    "drawn_same_molecule_share": "the same by draws",
    "valid_share": "valid, from the prior",
    "drawn_valid_share": "valid, from the posterior",
    "unique_share": "unique of the valid",
    "novel_share": "novel of the unique",
    "mutual_information_nats": "mutual information, nats",
    "distortion_nats": "-log p(x | z), nats",
}


class Convolutions(nn.Module):
    """Three convolutions over the symbols, then two dense layers.

    Args:
        in_shape: The shape of one sequence, ``(L,)``.
        out_shape: The shape of one output.
        num_symbols: How many symbols there are, the padding included.
    """

    reads_symbols = True

    def __init__(
        self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], *, num_symbols: int
    ) -> None:
        super().__init__()
        self.out_shape = tuple(out_shape)
        self.layers = nn.Sequential(
            nn.Conv1d(48, 32, 5, padding=2), nn.ReLU(),
            nn.Conv1d(32, 32, 5, padding=2), nn.ReLU(),
            nn.Conv1d(32, 32, 5, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * in_shape[0], 435), nn.ReLU(),
            nn.Linear(435, torch.Size(out_shape).numel()),
        )  # fmt: skip
        self.embedding = nn.Embedding(num_symbols, 48)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, L]`` to ``[*batch, *out_shape]``."""
        rows = self.embedding(x.long().reshape(-1, x.shape[-1])).transpose(1, 2)
        return self.layers(rows).reshape(*x.shape[:-1], *self.out_shape)


def program(scale: Scale, data: datasets.Dataset) -> VAE:
    """Return the networks of a row, for the symbols of its data."""
    assert data.vocabulary is not None
    num_symbols = len(data.vocabulary)
    network = partial(CausalRecurrent, hidden=scale.hidden, num_layers=scale.num_layers)
    return VAE.assemble(
        data.event_shape,
        _LATENTS,
        encoder=partial(Convolutions, num_symbols=num_symbols),
        decoder=partial(MLP, hidden=()),
        likelihood=partial(
            AutoregressiveSequence, num_categories=num_symbols, num_context=128, network=network
        ),
        data=data.train.x,
    )


def smiles_of(root: Path, scale: Scale) -> dict[str, list[str]]:
    """Return the molecules of ZINC-250k by part, split as by Jin et al., without longer ones."""
    folder = root / "zinc250k"
    with lzma.open(folder / "zinc250k.smi.xz", "rt") as file:
        smiles = file.read().split()
    held = np.load(folder / "jtvae_valid_idx.npy")
    kept = np.setdiff1d(np.arange(5_000, len(smiles)), held)
    parts = {
        "train": (kept, scale.num_train),
        "validation": (held, scale.num_test),
        "test": (range(5_000), scale.num_test),
    }
    found = {}
    for part, (rows, most) in parts.items():
        fitting = (smiles[row] for row in rows
                   if len(Smiles().split(smiles[row])) <= scale.max_symbols)  # fmt: skip
        found[part] = [each for each, _ in zip(fitting, range(most), strict=False)]
    return found


def run(row: Row, parts: Mapping[str, list[str]], study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a row of the table."""
    scale = study.scale
    reading = datasets.Reading(symbols=row.symbols, invalid="keep")
    data = datasets.from_arrays(dict(parts), name="zinc", text=reading)
    vae = program(scale, data)
    done = fit(
        vae,
        data,
        objective=BetaVAE(row.beta),
        optim=partial(adam, lr=3e-3),
        weights="last",
        epochs=scale.epochs,
        batch_size=scale.batch_size,
        engine="eager",  # torch's own GRU is faster on a processor than its recorded steps
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    x = data.test.x.to(next(vae.parameters()))
    bound, information = evaluation.elbo(vae, x), evaluation.mutual_information(vae, x)
    return {
        **judged(vae, data, x, parts, study),
        **_with_error("mutual_information_nats", information.nats),
        "mutual_information_ceiling_nats": information.ceiling,
        "rate_nats": bound.rate_nats.value,
        "distortion_nats": bound.distortion_nats.value,
        **searched(vae, data, parts, study, row.name),
        "training_seconds": done.seconds,
    }


def judged(
    vae: VAE,
    data: datasets.Dataset,
    x: Tensor,
    parts: Mapping[str, list[str]],
    study: Study[Scale],
) -> dict[str, Any]:
    """Return what the samples and the reconstructions of a trained model are like."""
    assert data.vocabulary is not None
    decode, greedy = data.vocabulary.decode, Drawing(temperature=0.0)(vae.model)
    samples = decode(
        evaluation.prior_samples(vae.model, x, study.scale.num_samples, stochastic=True)
    )
    back = molecules.recovery(decode(x), decode(evaluation.reconstruct(greedy, vae.guide, x)))
    drawn = molecules.recovery(
        decode(x), decode(evaluation.reconstruct(vae.model, vae.guide, x, stochastic=True))
    )
    quality = molecules.sample_quality(samples, parts["train"], parts["test"])
    found = {
        **_with_error("same_molecule_share", back.same_molecule),
        **_with_error("same_smiles_share", back.same_smiles),
        **_with_error("drawn_same_molecule_share", drawn.same_molecule),
        **_with_error("valid_share", quality.valid),
        **_with_error("drawn_valid_share", drawn.valid),
        **_with_error("unique_share", quality.unique),
        **_with_error("novel_share", quality.novel),
        "internal_diversity": quality.internal_diversity,
        **{f"{name}_distance": distance for name, distance in quality.distance.items()},
        "num_symbols": len(data.vocabulary),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def searched(
    vae: VAE, data: datasets.Dataset, parts: Mapping[str, list[str]], study: Study[Scale], name: str
) -> dict[str, Any]:
    """Return how well latents tell a property, and what a search that climbs it proposes.

    It starts at training molecules that the Gaussian process has not seen, drawn as they come.
    """
    num_fitted = study.scale.num_fitted
    rows = data.train.x[: 2 * num_fitted].to(next(vae.parameters()))
    latents = evaluation.posterior_means(vae, rows)["z"]
    values = molecules.properties(molecules.parsed(parts["train"][: len(rows)]), _SEARCHED)
    regression = molecules.PropertyRegression(
        latents[:num_fitted], values[:num_fitted], num_rows=num_fitted
    )
    accuracy = regression.accuracy(latents[num_fitted:], values[num_fitted:])
    starts = slice(num_fitted, num_fitted + min(_NUM_STARTS, num_fitted))
    found = molecules.propose(
        regression, latents[starts], partial(written, vae, data, rows), name=_SEARCHED,
        known=parts["train"],
    )  # fmt: skip
    best = found[:_NUM_SHOWN]
    if best:
        legends = [f"{each.predicted:.2f}, computed {each.computed:.2f}" for each in best]
        picture = molecules.grid([each.smiles for each in best], legends)
        replace_file(study.path.with_name(f"{study.path.stem}_proposed_{name}.png"), picture)
    return {
        "r_squared": accuracy.r_squared,
        "property_error": accuracy.absolute_error.value,
        "property_error_of_mean": accuracy.absolute_error_of_mean,
        "start_property": float(values[starts].mean()),
        "best_start_property": float(values[starts].max()),
        "num_proposed": len(found),
        **({"proposed_property": float(np.mean([each.computed for each in best])),
            "predicted_property": float(np.mean([each.predicted for each in best])),
            "best_proposed_property": max(each.computed for each in best)} if best else {}),
        "proposed": [vars(each) for each in best],
    }  # fmt: skip


def written(vae: VAE, data: datasets.Dataset, like: Tensor, z: Tensor) -> list[str]:
    """Return the molecules that the likeliest symbols make of latents, as SMILES."""
    assert data.vocabulary is not None
    greedy = Drawing(temperature=0.0)(vae.model)
    return data.vocabulary.decode(evaluation.decode(greedy, {"z": z}, like[:1]))


def _with_error(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_standard_error": found.standard_error}


def main(
    data_root: Path,
    scale: ScaleName = "cpu",
    rows: str = "*",
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Train and judge every row; print the table, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        parts = smiles_of(data_root, study.scale)
        for title, row in chosen(TABLE, rows).items():
            study.measure(title, partial(run, row, parts, study), published=row.published)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
