"""Initial weights as papers prescribe, for ``nn.Module.apply`` or a network's ``initialise``.

Biases start at zero, and so does a linear layer's part in them; embeddings and normalisations stay
as they are. Of a recurrent layer each gate's matrix starts on its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["glorot", "he", "orthogonal"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_WITH_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.RNNBase, *_TRANSPOSED)


def glorot(layer: nn.Module) -> None:
    r"""Draw weights from :math:`U(-a, a)`, :math:`a^2 = 6 / (n_\mathrm{in} + n_\mathrm{out})`.

    References:
        Understanding the difficulty of training deep feedforward neural networks
        (Glorot & Bengio, 2010)
    """
    _start(layer, nn.init.xavier_uniform_)


def he(layer: nn.Module) -> None:
    r"""Draw weights from :math:`N(0, 2 / n_\mathrm{in})`.

    References:
        Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet
        Classification (He, Zhang, Ren & Sun, 2015)
    """
    _start(layer, nn.init.kaiming_normal_)


def orthogonal(layer: nn.Module) -> None:
    r"""Draw weights from the matrices with orthogonal rows or columns, all directions alike.

    References:
        Exact solutions to the nonlinear dynamics of learning in deep linear neural networks
        (Saxe, McClelland & Ganguli, 2014)
    """
    _start(layer, nn.init.orthogonal_)


@torch.no_grad()
def _start(layer: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    if not isinstance(layer, _WITH_WEIGHTS):
        return
    for parameter in layer.parameters(recurse=False):
        if parameter.dim() < 2:
            parameter.zero_()
        elif isinstance(layer, _TRANSPOSED):  # whose weights are [in, out, ...]
            weight = draw(parameter.transpose(0, 1).contiguous())
            parameter.copy_(weight.transpose(0, 1))
        else:
            for gate in parameter.chunk(_num_gates(layer)):
                draw(gate)


def _num_gates(layer: nn.Module) -> int:
    return {"LSTM": 4, "GRU": 3}.get(layer.mode, 1) if isinstance(layer, nn.RNNBase) else 1
