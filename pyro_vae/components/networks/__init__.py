"""Networks: tensor to tensor, any leading batch dimensions; no probability in here.

Each takes the shape of one input and of one output, so that whoever needs a network decides its
sizes. The last layer has no bias: the offset of the conditional that owns the network is one.
"""

from pyro_vae.components.networks.convolutional import Convolutional, ConvolutionalResidual
from pyro_vae.components.networks.dense import MLP, Dictionary, GatedMLP, Residual, SkipMLP
from pyro_vae.components.networks.documents import (
    DocumentEncoder,
    ProductOfExperts,
    TopicMixture,
)
from pyro_vae.components.networks.image_grids import FullyConvolutional
from pyro_vae.components.networks.initialisation import glorot, he, orthogonal
from pyro_vae.components.networks.inputs import Observed, Standardize
from pyro_vae.components.networks.recurrent import CausalRecurrent, Recurrent, RecurrentDecoder
from pyro_vae.components.networks.sequences import Causal
from pyro_vae.components.networks.transformer import (
    CausalTransformer,
    Transformer,
    TransformerDecoder,
)

__all__ = [
    "MLP",
    "Causal",
    "CausalRecurrent",
    "CausalTransformer",
    "Convolutional",
    "ConvolutionalResidual",
    "Dictionary",
    "DocumentEncoder",
    "FullyConvolutional",
    "GatedMLP",
    "Observed",
    "ProductOfExperts",
    "Recurrent",
    "RecurrentDecoder",
    "Residual",
    "SkipMLP",
    "Standardize",
    "TopicMixture",
    "Transformer",
    "TransformerDecoder",
    "glorot",
    "he",
    "orthogonal",
]
