"""Train a program: fast, and resumable after a kill at any moment."""

from pyro_vae.arithmetic import fast_arithmetic
from pyro_vae.engine.callbacks import Callback
from pyro_vae.engine.checkpoint import CheckpointError
from pyro_vae.engine.defaults import resolve_device
from pyro_vae.engine.observations import AsFloat, Binarize, Dequantize, Observation, Rescale
from pyro_vae.engine.svi import SVI
from pyro_vae.engine.training import TrainingError
from pyro_vae.engine.turns import Turns
from pyro_vae.engine.weights import load_weights
from pyro_vae.signals import Interrupted

__all__ = [
    "SVI",
    "AsFloat",
    "Binarize",
    "Callback",
    "CheckpointError",
    "Dequantize",
    "Interrupted",
    "Observation",
    "Rescale",
    "TrainingError",
    "Turns",
    "fast_arithmetic",
    "load_weights",
    "resolve_device",
]
