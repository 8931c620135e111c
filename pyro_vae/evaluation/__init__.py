"""Evaluate any Pyro model and guide through their sites; nothing is trained, no state changed."""

from pyro_vae.evaluation.annealing import (
    AnnealedEstimate,
    Bracket,
    annealed_importance_sampling,
    annealed_with_bracket,
    bidirectional,
)
from pyro_vae.evaluation.classes import (
    analogies,
    class_probabilities,
    class_samples,
    cluster_accuracy,
    confusion,
    normalized_mutual_information,
)
from pyro_vae.evaluation.code_usage import CodeUsage, code_indices, code_usage
from pyro_vae.evaluation.drawing import Drawing
from pyro_vae.evaluation.estimates import Estimate
from pyro_vae.evaluation.gaps import Gaps, inference_gaps
from pyro_vae.evaluation.information import (
    Information,
    LayerInformation,
    mutual_information,
)
from pyro_vae.evaluation.latents import (
    UnitActivity,
    embed,
    linear_probe,
    logistic_regression,
    posterior_means,
    unit_activity,
)
from pyro_vae.evaluation.layers import reconstruct_from_top, resample_below
from pyro_vae.evaluation.likelihood import (
    Bound,
    ImportanceEstimate,
    elbo,
    importance_sampling,
    log_likelihood,
)
from pyro_vae.evaluation.reconstruction import ReconstructionError, reconstruction_error
from pyro_vae.evaluation.refinement import (
    PosteriorSamples,
    Refinement,
    refine,
    sample_posterior,
)
from pyro_vae.evaluation.samples import (
    decode,
    interpolate,
    manifold,
    observed,
    prior_samples,
    reconstruct,
    traverse,
)
from pyro_vae.evaluation.topics import (
    Coherence,
    Perplexity,
    coherence,
    diversity,
    perplexity,
    sliding_windows,
    top_words,
    topic_places,
    topic_shares,
)
from pyro_vae.evaluation.verdict import verdict

__all__ = [
    "AnnealedEstimate",
    "Bound",
    "Bracket",
    "CodeUsage",
    "Coherence",
    "Drawing",
    "Estimate",
    "Gaps",
    "ImportanceEstimate",
    "Information",
    "LayerInformation",
    "Perplexity",
    "PosteriorSamples",
    "ReconstructionError",
    "Refinement",
    "UnitActivity",
    "analogies",
    "annealed_importance_sampling",
    "annealed_with_bracket",
    "bidirectional",
    "class_probabilities",
    "class_samples",
    "cluster_accuracy",
    "code_indices",
    "code_usage",
    "coherence",
    "confusion",
    "decode",
    "diversity",
    "elbo",
    "embed",
    "importance_sampling",
    "inference_gaps",
    "interpolate",
    "linear_probe",
    "log_likelihood",
    "logistic_regression",
    "manifold",
    "mutual_information",
    "normalized_mutual_information",
    "observed",
    "perplexity",
    "posterior_means",
    "prior_samples",
    "reconstruct",
    "reconstruct_from_top",
    "reconstruction_error",
    "refine",
    "resample_below",
    "sample_posterior",
    "sliding_windows",
    "top_words",
    "topic_places",
    "topic_shares",
    "traverse",
    "unit_activity",
    "verdict",
]
