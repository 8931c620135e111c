"""Distributions of the entries of a row: each of its own kind, and some of them missing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from pyro_vae.distributions.categories import Categorical

__all__ = ["Columns", "Incomplete", "likeliest"]


class _ByColumn(constraints.Constraint):
    """Rows whose columns have supports of their own."""

    def __init__(self, columns: Sequence[constraints.Constraint]) -> None:
        self.columns = tuple(columns)
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return all(column.is_discrete for column in self.columns)

    def at(self, *index: int) -> constraints.Constraint:
        """Return the support of one entry."""
        return self.columns[index[-1]]

    def check(self, value: Tensor) -> Tensor:
        columns = value.unsqueeze(-1).unbind(-2)
        return torch.cat(
            [support.check(x) for support, x in zip(self.columns, columns, strict=True)], -1
        )


class Columns(dist.TorchDistribution):
    """Independent numbers, the last axis of which runs over distributions of different kinds.

    Args:
        columns: One distribution over single numbers for each column, each ``[*batch, 1]``.
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(self, columns: Sequence[Any], *, validate_args: bool | None = None) -> None:
        self.columns = tuple(columns)
        batches = [column.batch_shape[:-1] for column in self.columns]
        shape = torch.Size((*torch.broadcast_shapes(*batches), len(self.columns)))
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        """The support of each column."""
        return _ByColumn([column.support for column in self.columns])

    @property
    def mean(self) -> Tensor:
        """Return the mean of each column."""
        return self._joined([column.mean for column in self.columns])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        shape = (*batch_shape[:-1], 1)
        return type(self)([column.expand(shape) for column in self.columns], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability of each entry."""
        if self._validate_args:
            self._validate_sample(value)
        values = value.unsqueeze(-1).unbind(-2)
        found = [c.log_prob(x) for c, x in zip(self.columns, values, strict=True)]
        return torch.cat(torch.broadcast_tensors(*found), -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw each column."""
        return self._joined([column.sample(sample_shape) for column in self.columns])

    def _joined(self, columns: list[Tensor]) -> Tensor:
        wide = torch.promote_types(torch.get_default_dtype(), columns[0].dtype)
        for column in columns:
            wide = torch.promote_types(wide, column.dtype)
        return torch.cat(torch.broadcast_tensors(*(column.to(wide) for column in columns)), -1)


class _OrMissing(constraints.Constraint):
    """Values of a support, or NaN."""

    def __init__(self, base: constraints.Constraint, fill: Tensor) -> None:
        self.base_constraint = base
        self._fill = fill
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return self.base_constraint.is_discrete

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return 0

    def check(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        return missing | self.base_constraint.check(torch.where(missing, self._fill, value))


biject_to.register(_OrMissing, lambda support: biject_to(support.base_constraint))
transform_to.register(_OrMissing, lambda support: transform_to(support.base_constraint))


class Incomplete(dist.TorchDistribution):
    """Independent numbers of which those that are NaN have not been observed.

    A missing entry contributes nothing: the log-density of a row is that of its observed entries,
    all others integrated out. Draws are complete.

    Args:
        complete: A distribution over single numbers, ``[*batch]``.
        fill: A number in the support of each entry, put in the place of a missing one so that
            neither values nor gradients meet a NaN; broadcasts against the batch.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets
        (Mattei & Frellsen, 2019)
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(self, complete: Any, fill: Tensor, *, validate_args: bool | None = None) -> None:
        self.complete = complete
        self.fill = fill
        super().__init__(complete.batch_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""
        return bool(self.complete.has_rsample)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        """Values of the complete support, or NaN."""
        return _OrMissing(self.complete.support, self.fill)

    @property
    def mean(self) -> Tensor:
        """Return the mean, also of what was not observed."""
        return self.complete.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        return type(self)(self.complete.expand(batch_shape), self.fill, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each observed entry, and zero for each missing one."""
        if self._validate_args:
            self._validate_sample(value)
        missing = value.isnan()
        found = self.complete.log_prob(torch.where(missing, self.fill, value))
        return torch.where(missing, 0.0, found)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw complete rows, with gradients."""
        return self.complete.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw complete rows."""
        return self.complete.sample(sample_shape)


class _Likeliest(Categorical):
    """A Categorical that has the likeliest integer in the place of the mean."""

    @property
    def mean(self) -> Tensor:
        """Return the likeliest integer, in the type of the logits."""
        return self.logits.argmax(-1).to(self.logits.dtype)


def likeliest(distribution: Any) -> Any:
    """Return a distribution whose columns of categories have their likeliest one as the mean.

    Probabilities and draws stay; the mean of the numbers of categories would be no category.

    Args:
        distribution: Any of Pyro's; one without ``Columns`` inside is returned as it is.
    """
    if isinstance(distribution, Columns):
        columns = [_with_mode(column) for column in distribution.columns]
        return Columns(columns, validate_args=False)
    inner = next((n for n in ("base_dist", "complete") if hasattr(distribution, n)), None)
    if inner is None:
        return distribution
    other = copy.copy(distribution)
    setattr(other, inner, likeliest(getattr(distribution, inner)))
    return other


def _with_mode(column: Any) -> Any:
    if not isinstance(column, Categorical):
        return column
    return _Likeliest(column.logits, validate_args=False)
