"""Train in order to compare: objectives side by side, gradients, encoders that catch up."""

from pyro_vae.laboratory.aggressive import Aggressive
from pyro_vae.laboratory.comparison import compare
from pyro_vae.laboratory.comparison_record import Comparison
from pyro_vae.laboratory.gradients import Gradients, draw_gradients

__all__ = ["Aggressive", "Comparison", "Gradients", "compare", "draw_gradients"]
