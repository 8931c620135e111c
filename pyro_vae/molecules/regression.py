"""A property of molecules from their latents: a Gaussian process, with gradients."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluation.estimates import Estimate, Result

__all__ = ["Accuracy", "PropertyRegression"]

_BOUNDS = (1e-3, 1e3)


@dataclass(frozen=True, repr=False)
class Accuracy(Result):
    """How well a property is told from latents that the regression has not seen.

    Attributes:
        r_squared: 1 less the squared error over the variance; 0 tells nothing, 1 all.
        absolute_error: The mean of it, in units of the property.
        absolute_error_of_mean: That of saying the mean of the training data each time.
    """

    r_squared: float
    absolute_error: Estimate
    absolute_error_of_mean: float


class PropertyRegression:
    r"""A Gaussian process from latents to a property of molecules, fitted by scikit-learn.

    .. math:: y(z) = f(z) + \epsilon, \qquad
        \mathrm{Cov}(f(z), f(z')) = a \exp(-\|z - z'\|^2 / 2 \ell^2)

    Latents and values are standardised; a, l and the noise maximise the marginal likelihood. Its
    cost grows with the cube of the rows: a thousand take seconds.

    Args:
        latents: Of training data, such as posterior means, ``[N, D]``.
        values: Of the property, ``[N]``.
        num_rows: How many of them are used at most, drawn at random.
        seed: Of that draw.

    Raises:
        ValueError: If there are fewer than two, or not as many values as latents.

    References:
        Automatic Chemical Design Using a Data-Driven Continuous Representation of Molecules
        (Gomez-Bombarelli et al., 2018)
    """

    def __init__(
        self, latents: Tensor, values: np.ndarray, *, num_rows: int = 1_000, seed: int = 0
    ) -> None:
        if len(latents) != len(values) or len(values) < 2:
            raise ValueError(
                f"{len(latents)} latents and {len(values)} values: give 2 pairs or more"
            )
        rows = np.random.RandomState(seed).permutation(len(values))[:num_rows]
        z, y = latents.detach().cpu().double()[rows], torch.from_numpy(values[rows]).double()
        self._center, self._width = z.mean(0), z.std(0).clamp(min=1e-6)
        self._mean, self._scale = y.mean(), y.std().clamp(min=1e-12)
        self._z = (z - self._center) / self._width
        self._fit(self._z.numpy(), ((y - self._mean) / self._scale).numpy())

    def _fit(self, z: np.ndarray, y: np.ndarray) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        start = math.sqrt(z.shape[1])  # standardised latents are about that far apart
        kernel = ConstantKernel(1.0, _BOUNDS) * RBF(start, _BOUNDS) + WhiteKernel(0.5, (1e-4, 10))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # at a bound: y is constant, or noise
            found = GaussianProcessRegressor(kernel, alpha=1e-8).fit(z, y)
        self.process = found
        smooth = found.kernel_.k1
        self._amplitude = float(smooth.k1.constant_value)
        self._length = float(smooth.k2.length_scale)
        self._weights = torch.from_numpy(found.alpha_)
        self._factor = torch.from_numpy(found.L_)

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of f at latents, ``[M]`` each; with gradients.

        Args:
            latents: ``[M, D]``.
        """
        z = (latents.double().cpu() - self._center) / self._width
        squared = (z[:, None] - self._z[None]).square().sum(-1)
        covariance = self._amplitude * (-0.5 * squared / self._length**2).exp()
        known = torch.linalg.solve_triangular(self._factor, covariance.T, upper=False)
        variance = (self._amplitude - known.square().sum(0)).clamp(min=1e-12)
        return self._mean + self._scale * (
            covariance @ self._weights
        ), self._scale * variance.sqrt()

    @property
    def width(self) -> Tensor:
        """The standard deviation of each latent over the training data, ``[D]``."""
        return self._width

    def accuracy(self, latents: Tensor, values: np.ndarray) -> Accuracy:
        """Return how well the property of other data is told, ``[M, D]`` and ``[M]``."""
        y = torch.from_numpy(values).double()
        with torch.no_grad():
            error = self(latents)[0] - y
        off = y - self._mean
        return Accuracy(
            r_squared=float(1 - error.square().mean() / (y - y.mean()).square().mean()),
            absolute_error=Estimate.of(error.abs(), unit="units of the property"),
            absolute_error_of_mean=float(off.abs().mean()),
        )
