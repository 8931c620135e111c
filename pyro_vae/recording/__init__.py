"""Record a function of tensors once as a flat graph, watch what it depends on, and replay it."""

from pyro_vae.recording.recorder import NotRecordable, Recorder
from pyro_vae.recording.replaying import ENGINES, Replayed

__all__ = ["ENGINES", "NotRecordable", "Recorder", "Replayed"]
