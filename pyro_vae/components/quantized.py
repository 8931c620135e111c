r"""Quantised latents: a posterior that is the code next to the encoder's output, and priors.

The posterior has probability one at a grid of code vectors, so that its log q is 0 and the KL from
a uniform prior is M log K nats: the ELBO is a bound as ever. Gradients pass from the code to the
encoder's output as if it had not been replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.autoregressive import AutoregressiveCategorical
from pyro_vae.components.codebooks import Codebook, FiniteGrid, MovingCodebook
from pyro_vae.components.conditional import Conditional, Distribution, Family, Shape
from pyro_vae.distributions.codes import channels_first, channels_last
from pyro_vae.inference.auxiliary import auxiliary_loss
from pyro_vae.wording import option

__all__ = ["AutoregressiveCodes", "FiniteScalar", "NearestCode", "UniformCodes", "codes_of"]


class NearestCode(Family):
    r"""The code vectors next to the encoder's output v, one in each place of a grid (VQ-VAE).

    .. math:: z = e_k, \quad k = \arg\min_j \| v - e_j \|, \qquad
        \text{auxiliary loss} \;\; \beta \| v - \mathrm{sg}(e_k) \|^2

    The commitment is summed over the numbers of a datum, as log p(x | z) is, so that neither the
    batch size nor the size of the grid changes what it weighs.

    Args:
        event_shape: D, the length of a vector, and the grid behind it: (64, 8, 8) is 64 codes of 64
            numbers; (16,) is a single code.
        num_codes: K, the number of code vectors.
        commitment: :math:`\beta`, not negative.
        codebook: Builds the codebook of K vectors of D numbers: ``MovingCodebook`` (averages of
            encoder outputs; dead codes start anew) or ``LearnedCodebook`` (parameters).

    Raises:
        ValueError: If there are fewer than two codes, or the commitment is negative.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
    """

    roles = ("posterior",)
    synonyms = ("VQ", "VectorQuantized")
    example: ClassVar = {"num_codes": 3}

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        num_codes: int = 512,
        commitment: float = 0.25,
        codebook: Callable[[int, int], Codebook] = MovingCodebook,
    ) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment={commitment}: give a finite number of 0 or more")
        self.commitment = commitment
        self.codes = codebook(num_codes, self.event_shape[0])

    def forward(self, raw: Tensor) -> Distribution:
        """Return the point at the codes next to ``raw``, ``[*batch, 1, *event_shape]``."""
        event_dim = len(self.event_shape)
        vectors = channels_last(raw.squeeze(-1 - event_dim), event_dim)
        flat = vectors.reshape(-1, vectors.shape[-1])
        indices = self.codes.nearest(flat.detach())
        code = self.codes.vectors(indices).detach().view_as(vectors)
        losses = {"commitment": self.commitment * (vectors - code).square().sum(-1)}
        own = self.codes.follow(flat.detach(), indices)
        if own is not None:
            losses["codebook"] = own.view(vectors.shape[:-1])
        for name, loss in losses.items():
            auxiliary_loss(name, loss if event_dim == 1 else loss.flatten(1 - event_dim).sum(-1))
        value = channels_first(_straight_through(vectors, code), event_dim)
        indices = indices.view(vectors.shape[:-1])
        return distributions.CodePoint(value, indices, self.codes, event_dim)


class FiniteScalar(Family):
    r"""Each number of the encoder's output rounded to one of L levels in [-1, 1] (FSQ).

    .. math:: z_d = \mathrm{round}_L(\tanh v_d)

    There is no codebook to learn, no commitment, and no code that dies.

    Args:
        event_shape: D, the length of a vector, and the grid behind it.
        levels: L of each of the D numbers; one for all, or a list.

    Raises:
        ValueError: If a list is not as long as a vector, or a number has fewer than two levels.

    References:
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer, Minnen, Agustsson & Tschannen,
        2024)
    """

    roles = ("posterior",)
    synonyms = ("FSQ",)
    example: ClassVar = {"levels": 3}

    @at_the_door
    def __init__(self, event_shape: Shape, levels: int | Sequence[int] = 8) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        size = self.event_shape[0]
        each = [levels] * size if isinstance(levels, int) else list(levels)
        if len(each) != size:
            raise ValueError(
                f"levels={each}: they quantise {len(each)} numbers, and a vector of a latent of "
                f"shape {self.event_shape} has {size}: give {size} levels, or one for all"
            )
        self.codes = FiniteGrid(each)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the point at the levels next to ``raw``, ``[*batch, 1, *event_shape]``."""
        event_dim = len(self.event_shape)
        vectors = self.codes.bounded(channels_last(raw.squeeze(-1 - event_dim), event_dim))
        indices = self.codes.nearest(vectors.detach())
        code = self.codes.vectors(indices)
        value = channels_first(_straight_through(vectors, code), event_dim)
        return distributions.CodePoint(value, indices, self.codes, event_dim)


class UniformCodes(Family):
    r"""All codes of the posterior alike: :math:`p(z) = K^{-M}`, the first prior of a VQ-VAE.

    It shares the codebook of the posterior, which has to be ``NearestCode`` or ``FiniteScalar``.

    Args:
        event_shape: The shape of one latent, of vectors in M places.

    Raises:
        ValueError: Later, if the posterior has no codebook, or more codes than there are data.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
    """

    roles = ("prior",)

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(0,))
        # In a tuple, so that the codebook is registered where it belongs only.
        self._codes: tuple[Any, ...] = ()

    def start_from_posterior(self, posterior: Conditional, data: Tensor | None) -> None:
        """Share the codebook of q(z | x)."""
        codes = codes_of(self, posterior)
        num_vectors = None if data is None else len(data) * math.prod(self.event_shape[1:])
        learned = isinstance(codes, Codebook)
        if learned and num_vectors is not None and num_vectors < codes.num_codes:
            raise ValueError(
                f"a codebook of {codes.num_codes:,} codes is larger than the {num_vectors:,} "
                "vectors that all data give; take fewer codes "
                f"({option('posterior.num_codes', max(2, num_vectors // 8), python='num_codes')})"
            )
        self._codes = (codes,)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the uniform distribution; there are no raw numbers."""
        if not self._codes:
            raise ValueError(
                "UniformCodes has not met the posterior whose codes it is over: build the model "
                "with assemble(...), or call start_from_posterior(posterior, data)"
            )
        (codes,) = self._codes
        weights = raw.new_ones(()).expand(codes.num_codes)
        grid = dist.Categorical(weights).expand(self.event_shape[1:])
        indices = grid.to_event(len(self.event_shape) - 1)
        return distributions.UniformCodeVectors(indices, codes, self.event_shape[0])


class AutoregressiveCodes(Family):
    r"""Codes of the posterior one after the other, :math:`p(z) = \prod_m p(k_m \mid k_{<m})`.

    The second prior of a VQ-VAE: a transformer over the grid of indices, row by row. It shares the
    codebook of the posterior, which has to be ``NearestCode`` or ``FiniteScalar``. It starts
    uniform.

    Args:
        event_shape: The shape of one latent, of vectors in M places.
        width: How many numbers stand for a place in the network.
        num_heads: The number of attention heads, which share the width.
        num_layers: How many blocks of attention and dense layers there are.

    Raises:
        ValueError: If a latent has one place only; later, if the posterior has no codebook.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
    """

    roles = ("prior",)
    example: ClassVar = {"width": 4, "num_heads": 2, "num_layers": 1}

    @at_the_door
    def __init__(
        self, event_shape: Shape, *, width: int = 64, num_heads: int = 4, num_layers: int = 2
    ) -> None:
        super().__init__(event_shape, raw_shape=(0,))
        self._network = {"width": width, "num_heads": num_heads, "num_layers": num_layers}
        self._codes: tuple[Any, ...] = ()
        self.grid: Conditional | None = None

    def start_from_posterior(self, posterior: Conditional, data: Tensor | None) -> None:
        """Share the codebook of q(z | x), and build the network for so many codes."""
        codes = codes_of(self, posterior)
        shape = self.event_shape[1:] or (1,)
        grid = AutoregressiveCategorical(shape, num_categories=codes.num_codes, **self._network)
        self._codes, self.grid = (codes,), Conditional(grid)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution; its numbers are those of the network."""
        if self.grid is None:
            raise ValueError(
                "AutoregressiveCodes has not met the posterior whose codes it is over: build the "
                "model with assemble(...), or call start_from_posterior(posterior, data)"
            )
        (codes,) = self._codes
        return distributions.CodeVectors(self.grid(), codes, self.event_shape[0])


def codes_of(prior: Family, posterior: Conditional) -> Any:
    """Return the codebook of a posterior for a prior over its codes.

    Raises:
        ValueError: If it has none, or is over events of another shape.
    """
    codes = getattr(posterior.family, "codes", None)
    name, other = type(prior).__name__, type(posterior.family).__name__
    if codes is None:
        raise ValueError(
            f"{name} is a prior over the codes of a posterior, and {other} has none: take "
            "NearestCode or FiniteScalar"
        )
    if posterior.family.event_shape != prior.event_shape:
        raise ValueError(
            f"{name} over event_shape={prior.event_shape} is given codes over "
            f"{posterior.family.event_shape}: give both the shape of the latent"
        )
    return codes


def _straight_through(vectors: Tensor, code: Tensor) -> Tensor:
    """Return the code itself, to the bit, with the gradient of the vectors."""
    return code + (vectors - vectors.detach())
