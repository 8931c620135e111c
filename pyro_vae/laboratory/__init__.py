"""Train in order to compare: objectives side by side, gradients, and priors of trained programs."""

from pyro_vae.laboratory.aggressive import Aggressive
from pyro_vae.laboratory.comparison import compare
from pyro_vae.laboratory.comparison_record import Comparison
from pyro_vae.laboratory.finetune import Classifier, Encoder, FineTuned, finetune
from pyro_vae.laboratory.gradients import Gradients, draw_gradients
from pyro_vae.laboratory.priors import PriorError
from pyro_vae.laboratory.refit import Refit, refit

__all__ = [
    "Aggressive",
    "Classifier",
    "Comparison",
    "Encoder",
    "FineTuned",
    "Gradients",
    "PriorError",
    "Refit",
    "compare",
    "draw_gradients",
    "finetune",
    "refit",
]
