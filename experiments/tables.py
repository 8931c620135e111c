"""What does a VAE know of a table with gaps? Counts and columns of several kinds, a fifth removed.

    python experiments/tables.py --scale smoke|cpu|paper

No paper is held against: the baseline is what can be said without looking at more than one column,
in closed form. The tables are scikit-learn's: the digits, 64 counts of black cells from 0 to 16;
diabetes, of 442 patients a bit, four whole numbers and six real ones; wine, of 178 wines a
category, two whole numbers and eleven real ones. A fifth of all entries is removed at random, in
every part; a quarter of the rows is for the test. Real columns are standardised as the observed
entries for training are.

Measured on rows for the test: -log p of their observed entries in nats a row, all others
integrated out, and what is said of those that were removed: the root of the mean squared error of
numbers, in standard deviations of their column (of the digits, whose columns are of one kind, of
all of them), and the share of categories taken for others. The VAE imputes the mean over z of its
likelihood's mean, given the observed entries, by importance sampling (Mattei & Frellsen, 2019), and
a category by votes of draws; the baseline imputes the column's mean, or its most frequent category.

The baseline's columns are normal, Bernoulli, binomial, Poisson and categorical variables of the
observed mean or shares, with half an event or one entry added where a probability could be zero,
and, for whole numbers that are measured, rounded logistic variables of the observed mean and
variance. The VAE has the same kinds of distributions, so numbers of one table compare; the
likelihoods of the digits are all probabilities of counts and compare, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from jsonargparse import auto_cli
from sklearn.datasets import load_diabetes, load_digits, load_wine
from study import ScaleName, Study, chosen, judge
from torch import Tensor, nn

from pyro_vae import VAE, datasets, distributions, fit
from pyro_vae.components import (
    MLP,
    Automatic,
    Bernoulli,
    Binomial,
    Categorical,
    Columns,
    DiscretizedLogistic,
    Incomplete,
    Normal,
    SharedScale,
)
from pyro_vae.engine.optimizers import adam

REMOVED = 0.2
_PARTS = (0.6, 0.15)  # training, validation; the rest is for the test
_ROWS_AT_ONCE = 10


class Kind(NamedTuple):
    """What a column holds: its family, and which member of it observed entries ask for."""

    family: Callable[..., Any]
    closed_form: Callable[[Tensor], Any]
    num_categories: int = 0  # 0 for numbers


REAL = Kind(
    partial(Normal, scale=SharedScale), lambda x: dist.Normal(x.mean(), x.std(correction=0))
)
BIT = Kind(Bernoulli, lambda x: dist.Bernoulli((x.sum() + 0.5) / (len(x) + 1)))
COUNT = Kind(Automatic.of(dist.Poisson), lambda x: dist.Poisson((x.sum() + 0.5) / (len(x) + 1)))


def level_of(num_levels: int) -> Kind:
    """Return the kind of numbers from zero up to one less than ``num_levels``."""
    return Kind(partial(Categorical, num_categories=num_levels), partial(_shares, num_levels))


def out_of(total: int) -> Kind:
    """Return the kind of counts from zero to a total."""
    return Kind(
        partial(Binomial, total_count=total),
        lambda x: dist.Binomial(total, (x.sum() + 0.5) / (total * len(x) + 1)),
    )


def whole(largest: int) -> Kind:
    """Return the kind of whole numbers, from zero up, that are measured rather than counted."""

    def closed_form(x: Tensor) -> Any:
        scale = x.std(correction=0) * math.sqrt(3) / math.pi  # of a logistic variable
        return distributions.DiscretizedLogistic(x.mean(), scale, largest)

    return Kind(partial(DiscretizedLogistic, levels=largest), closed_form)


def one_of(num_categories: int) -> Kind:
    """Return the kind of categories."""
    return level_of(num_categories)._replace(num_categories=num_categories)


def _shares(num_categories: int, x: Tensor) -> Any:
    counts = torch.bincount(x.long(), minlength=num_categories).to(x)
    return dist.Categorical((counts + 1 / num_categories) / (len(x) + 1))


class Table(NamedTuple):
    """A table before anything is removed, ``[N, D]``, and the kinds of its D columns."""

    x: Tensor
    kinds: tuple[Kind, ...]


def digits(kind: Kind) -> Table:
    """Return the digits, all columns of one kind."""
    return Table(torch.as_tensor(load_digits().data).float(), (kind,) * 64)


def diabetes() -> Table:
    """Return age, sex, body mass index, blood pressure, six serum values, and the progression."""
    found = load_diabetes(scaled=False)
    x = np.column_stack([found.data, found.target])
    x[:, 1] -= 1
    kinds = [REAL] * 11
    kinds[0], kinds[1], kinds[4], kinds[9], kinds[10] = (
        whole(100), BIT, whole(400), whole(200), whole(400),
    )  # fmt: skip
    return Table(torch.as_tensor(x).float(), tuple(kinds))


def wine() -> Table:
    """Return thirteen measurements of wines, and which of three cultivars they are from."""
    found = load_wine()
    kinds = [REAL] * 13
    kinds[found.feature_names.index("magnesium")] = whole(200)
    kinds[found.feature_names.index("proline")] = whole(2_000)
    x = np.column_stack([found.data, found.target])
    return Table(torch.as_tensor(x).float(), (*kinds, one_of(3)))


TABLES: dict[str, Callable[[], Table]] = {
    "digits, levels": lambda: digits(level_of(17)),
    "digits, binomial": lambda: digits(out_of(16)),
    "digits, Poisson": lambda: digits(COUNT),
    "diabetes": diabetes,
    "wine": wine,
}
_VAE, _COLUMNS = "{}: VAE", "{}: columns alone"
PAIRS = [(_VAE.format(title), _COLUMNS.format(title)) for title in TABLES]
PAIRS += [(_VAE.format("digits, binomial"), _COLUMNS.format("digits, levels"))]


class Scale(NamedTuple):
    """How many rows are taken, and how long is trained."""

    num_rows: int
    num_steps: int
    num_samples: int
    hidden: tuple[int, ...] = (100, 100)
    left_out: tuple[str, ...] = ()


_TOO_MANY = ("digits, levels", "digits, Poisson", "diabetes")

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(60, 6, 10, (8,), _TOO_MANY),
    "cpu": Scale(2_000, 3_000, 1_000),
    "paper": Scale(2_000, 20_000, 5_000),
}

COLUMNS = {
    "nll_nats": "-log p of observed, nats",
    "rmse_deviations": "error of removed, deviations",
    "misclassified_percent": "wrong categories, %",
    "rate_nats": "KL, nats",
    "training_seconds": "training, s",
}


class Split(NamedTuple):
    """The parts of a table with gaps, NaN, and the rows for the test without."""

    train: Tensor
    validation: Tensor
    test: Tensor
    complete: Tensor


def with_gaps(table: Table, num_rows: int, seed: int) -> Split:
    """Shuffle the rows, split them, remove entries, and standardise real columns."""
    random = torch.Generator().manual_seed(seed)
    x = table.x[torch.randperm(len(table.x), generator=random)][:num_rows]
    seen = torch.where(torch.rand(x.shape, generator=random) < REMOVED, math.nan, x)
    num_train, num_validation = (round(part * len(x)) for part in _PARTS)
    sizes = [num_train, num_validation, len(x) - num_train - num_validation]
    loc, scale = moments(seen[:num_train])
    real = torch.tensor([kind is REAL for kind in table.kinds])
    seen = torch.where(real, (seen - loc) / scale, seen)
    complete = torch.where(real, (x - loc) / scale, x)
    return Split(*seen.split(sizes), complete[-sizes[2] :])


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each column's observed entries."""
    loc = x.nanmean(0)
    return loc, (x - loc).square().nanmean(0).sqrt()


def deviations(x: Tensor, kinds: Sequence[Kind]) -> Tensor:
    """Return the standard deviation of each column's entries, those of one kind taken together."""
    variances = moments(x)[1].square()
    alike = torch.tensor([[kind is other for other in kinds] for kind in kinds])
    return ((alike * variances).sum(1) / alike.sum(1)).sqrt()


class ColumnsAlone:
    """The baseline: columns that know nothing of each other.

    Args:
        x: Rows with gaps, ``[N, D]``.
        kinds: Of the columns.
    """

    def __init__(self, x: Tensor, kinds: Sequence[Kind]) -> None:
        columns = [column[~column.isnan()] for column in x.T]
        self.fitted = [
            kind.closed_form(column) for kind, column in zip(kinds, columns, strict=True)
        ]
        self.guess = torch.stack(
            [
                column.mode().values if kind.num_categories else column.mean()
                for kind, column in zip(kinds, columns, strict=True)
            ]
        )

    def log_p(self, x: Tensor) -> Tensor:
        """Return log p of the observed entries of each row, ``[N]``."""
        missing = x.isnan()
        filled = torch.where(missing, self.guess.round(), x)
        each = [one.log_prob(column) for one, column in zip(self.fitted, filled.T, strict=True)]
        return torch.where(missing, 0.0, torch.stack(each, -1)).sum(-1)

    def imputed(self, x: Tensor) -> Tensor:
        """Return the rows with the mean, or the most frequent category, in the gaps."""
        return torch.where(x.isnan(), self.guess, x)


def program(table: Table, x: Tensor, hidden: tuple[int, ...]) -> VAE:
    """Return a VAE of rows with gaps, started at rows ``x``."""
    kinds = table.kinds
    same = all(kind is kinds[0] for kind in kinds)
    families = [kind.family for kind in kinds]
    family = families[0] if same else partial(Columns, columns=families)
    return VAE.assemble(
        (len(kinds),),
        (10,),
        likelihood=partial(Incomplete, family=family),
        network=partial(MLP, hidden=hidden),
        data=x,
    )


def imputed(vae: VAE, x: Tensor, kinds: Sequence[Kind], num_samples: int) -> Tensor:
    r"""Return the rows ``x``, ``[N, D]``, with gaps filled from p(x_missing | x_observed).

    .. math:: \sum_s w_s \mathrm{E}[x \mid z_s], \qquad
        w_s \propto \frac{p(x_\mathrm{observed} \mid z_s) p(z_s)}{q(z_s \mid x)}
    """
    device = next(vae.parameters()).device
    few = x.split(_ROWS_AT_ONCE)
    guesses = [_guess(vae, rows.to(device), kinds, num_samples).cpu() for rows in few]
    return torch.where(x.isnan(), torch.cat(guesses), x)


@torch.no_grad()
def _guess(vae: VAE, x: Tensor, kinds: Sequence[Kind], num_samples: int) -> Tensor:
    posterior = vae.posterior(x)
    z = posterior.sample(torch.Size((num_samples,)))
    likelihood = vae.likelihood(z)
    log_w = vae.prior().log_prob(z) + likelihood.log_prob(x) - posterior.log_prob(z)
    weights = log_w.softmax(0).unsqueeze(-1)
    guess = (weights * likelihood.mean).sum(0)
    drawn = likelihood.sample()
    for place, kind in enumerate(kinds):
        if kind.num_categories:
            votes = nn.functional.one_hot(drawn[..., place].long(), kind.num_categories)
            guess[:, place] = (weights * votes).sum(0).argmax(-1).to(guess)
    return guess


def errors(guess: Tensor, split: Split, kinds: Sequence[Kind]) -> dict[str, float]:
    """Return how far a guess at the removed entries of the test rows lies from the truth."""
    removed = split.test.isnan()
    category = torch.tensor([kind.num_categories > 0 for kind in kinds])
    away = (guess - split.complete) / deviations(split.train, kinds)
    found = {"rmse_deviations": away[removed & ~category].square().mean().sqrt().item()}
    if bool((removed & category).any()):
        wrong = (guess != split.complete)[removed & category].double().mean()
        found["misclassified_percent"] = 100 * wrong.item()
    return found


def run_columns(table: Table, split: Split) -> dict[str, Any]:
    """Judge the baseline."""
    alone = ColumnsAlone(split.train, table.kinds)
    log_p = alone.log_p(split.test)
    return {
        "nll_nats": -log_p.mean().item(),
        "nll_nats_standard_error": (log_p.std() / math.sqrt(len(log_p))).item(),
        **errors(alone.imputed(split.test), split, table.kinds),
        "log_p": log_p,
    }


def run_vae(table: Table, split: Split, study: Study[Scale]) -> dict[str, Any]:
    """Train and judge a VAE; the weights with the best validation bound stay."""
    scale = study.scale
    vae = program(table, split.train, scale.hidden)
    parts = (datasets.Data(part) for part in split[:3])
    epochs = -(-scale.num_steps // -(-len(split.train) // 32))
    done = fit(
        vae,
        datasets.Dataset("table", *parts, levels=None),
        optim=partial(adam, lr=1e-3),
        epochs=epochs,
        patience=epochs,
        batch_size=32,
        seed=study.seed,
        progress=sys.stderr.isatty(),
    )
    guess = imputed(vae, split.test, table.kinds, scale.num_samples)
    return {
        **judge(vae, split.test, num_samples=scale.num_samples),
        **errors(guess, split, table.kinds),
        "best_epoch": done.best_epoch,
        "training_seconds": done.seconds,
    }


def main(scale: ScaleName = "cpu", rows: str = "*", seed: int = 0, name: str | None = None) -> None:
    """Judge a VAE and the baseline on every table; print, write the record, draw the figure."""
    with Study(__file__, __doc__, SCALES, scale=scale, seed=seed, name=name) as study:
        for title, load in chosen(TABLES, rows, left_out=study.scale.left_out).items():
            table = load()
            split = with_gaps(table, study.scale.num_rows, seed)
            study.measure(_VAE.format(title), partial(run_vae, table, split, study))
            study.measure(_COLUMNS.format(title), partial(run_columns, table, split))
        study.order(PAIRS)
        study.show(COLUMNS)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
