"""Modules that return a distribution: the vocabulary of p and q."""

from pyro_vae.components.amortized_flows import Householder, Planar, Radial, Sylvester
from pyro_vae.components.assembly import assemble, assemble_hierarchy, assemble_ladder
from pyro_vae.components.automatic import Automatic
from pyro_vae.components.autoregressive import (
    AutoregressiveBernoulli,
    AutoregressiveCategorical,
)
from pyro_vae.components.classes import assemble_clusters, assemble_semi_supervised
from pyro_vae.components.codebooks import FiniteGrid, LearnedCodebook, MovingCodebook
from pyro_vae.components.committed import (
    AutoregressiveNormal,
    BatchNormalizedNormal,
    CommittedNormal,
)
from pyro_vae.components.conditional import Conditional, Family
from pyro_vae.components.flows import (
    AffineCoupling,
    InverseAutoregressive,
    MaskedAutoregressive,
    NeuralSpline,
)
from pyro_vae.components.images import (
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    LogitNormal,
)
from pyro_vae.components.labelled import assemble_conditional
from pyro_vae.components.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.components.mixtures import MixtureOfNormals, StratifiedMixture, VampPrior
from pyro_vae.components.networks import (
    MLP,
    Convolutional,
    ConvolutionalResidual,
    Dictionary,
    DocumentEncoder,
    FullyConvolutional,
    GatedMLP,
    Observed,
    ProductOfExperts,
    Recurrent,
    RecurrentDecoder,
    Residual,
    SkipMLP,
    Standardize,
    TopicMixture,
    Transformer,
    TransformerDecoder,
    glorot,
    he,
    orthogonal,
)
from pyro_vae.components.noises import (
    GaussianNoise,
    MaskingNoise,
    Noise,
    SaltAndPepperNoise,
    WordDropout,
)
from pyro_vae.components.pixelcnn import LogisticLevels, PixelCNN, SoftmaxLevels
from pyro_vae.components.points import Point, RatePoint, SparsePoint, TopKPoint
from pyro_vae.components.posteriors import (
    DiagonalNormal,
    FullNormal,
    LowRankNormal,
    PerDatum,
)
from pyro_vae.components.priors import StandardNormal, learned
from pyro_vae.components.proportions import Dirichlet, LaplaceDirichlet
from pyro_vae.components.quantized import (
    AutoregressiveCodes,
    FiniteScalar,
    NearestCode,
    UniformCodes,
)
from pyro_vae.components.relaxed import (
    Concrete,
    RelaxedBernoulli,
    StraightThroughBernoulli,
    StraightThroughCategorical,
)
from pyro_vae.components.scales import OptimalScale, PerDimensionScale, SharedScale
from pyro_vae.components.sequences import AutoregressiveSequence, CategoricalSequence, Multinomial
from pyro_vae.components.spheres import UniformSphere, VonMisesFisher
from pyro_vae.components.tables import Columns, Incomplete

__all__ = [
    "MLP",
    "AffineCoupling",
    "Automatic",
    "AutoregressiveBernoulli",
    "AutoregressiveCategorical",
    "AutoregressiveCodes",
    "AutoregressiveNormal",
    "AutoregressiveSequence",
    "BatchNormalizedNormal",
    "Bernoulli",
    "Binomial",
    "Categorical",
    "CategoricalSequence",
    "Columns",
    "CommittedNormal",
    "Concrete",
    "Conditional",
    "ContinuousBernoulli",
    "Convolutional",
    "ConvolutionalResidual",
    "DiagonalNormal",
    "Dictionary",
    "Dirichlet",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "DocumentEncoder",
    "Family",
    "FiniteGrid",
    "FiniteScalar",
    "FullNormal",
    "FullyConvolutional",
    "GatedMLP",
    "GaussianNoise",
    "Householder",
    "Incomplete",
    "InverseAutoregressive",
    "LaplaceDirichlet",
    "LearnedCodebook",
    "LogisticLevels",
    "LogitNormal",
    "LowRankNormal",
    "MaskedAutoregressive",
    "MaskingNoise",
    "MixtureOfNormals",
    "MovingCodebook",
    "Multinomial",
    "NearestCode",
    "NeuralSpline",
    "Noise",
    "Normal",
    "Observed",
    "OptimalScale",
    "PerDatum",
    "PerDimensionScale",
    "PixelCNN",
    "Planar",
    "Point",
    "ProductOfExperts",
    "Radial",
    "RatePoint",
    "Recurrent",
    "RecurrentDecoder",
    "RelaxedBernoulli",
    "Residual",
    "SaltAndPepperNoise",
    "SharedScale",
    "SkipMLP",
    "SoftmaxLevels",
    "SparsePoint",
    "StandardNormal",
    "Standardize",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
    "StratifiedMixture",
    "Sylvester",
    "TopKPoint",
    "TopicMixture",
    "Transformer",
    "TransformerDecoder",
    "UniformCodes",
    "UniformSphere",
    "VampPrior",
    "VonMisesFisher",
    "WordDropout",
    "assemble",
    "assemble_clusters",
    "assemble_conditional",
    "assemble_hierarchy",
    "assemble_ladder",
    "assemble_semi_supervised",
    "glorot",
    "he",
    "learned",
    "orthogonal",
]
