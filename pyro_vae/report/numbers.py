"""The numbers of a run's results: how each is called, written and explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["NUMBERS", "PARTNERS", "RENAMED", "TEXTS", "WHOLES", "Number", "count"]


class Number(NamedTuple):
    """How one number of the results is called, written and explained."""

    name: str
    write: Callable[[float], str]
    meaning: str


def nats(value: float) -> str:
    return f"{value:,.2f}"


def count(value: float) -> str:
    """Write a number of things, whole where it is."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def share(value: float) -> str:
    return f"{value:.3f}"


TEXTS = ("verdict", "classes", "topics", "topic_npmi_of")
NUMBERS = {
    "test_elbo_nats": Number(
        "test ELBO (nats per datum)",
        nats,
        "Evidence lower bound, E_q[log p(x, z) - log q(z | x)], averaged over the test data; "
        "at most the log-likelihood, higher is better.",
    ),
    "refit_gained_nats": Number(
        "gained by the new prior (nats per datum)",
        nats,
        "E_q[log p(z)] under the new prior less that under the old one, of the same draws for the "
        "test data; encoder and decoder are the same, so that the ELBO has risen by as much.",
    ),
    "code_gained_nats": Number(
        "log p(z) of the codes gained by the new prior (nats per datum)",
        nats,
        "That under the new prior less that under the old one, of the codes of the test data; no "
        "bound of log p(x), of which there is none.",
    ),
    "code_log_density_nats": Number(
        "log p(z) of the codes (nats per datum)",
        nats,
        "Under the new prior, averaged over the codes of the test data.",
    ),
    "code_log_density_before_nats": Number(
        "log p(z) of the codes under the old prior (nats per datum)",
        nats,
        "The same, under the prior that was replaced.",
    ),
    "elbo_before_nats": Number(
        "test ELBO under the old prior (nats per datum)",
        nats,
        "That of the run whose prior was replaced, on the same test data.",
    ),
    "test_log_likelihood_nats": Number(
        "test log-likelihood (nats per datum)",
        nats,
        "log p(x) by importance sampling with the guide as proposal, averaged over the test data; "
        "in expectation a lower bound that tightens with the number of samples.",
    ),
    "bits_per_dim": Number(
        "bits per dimension",
        lambda value: f"{value:.3f}",
        "-ELBO on the test data in bits per integer of a datum, as stored; lower is better.",
    ),
    "nats_per_symbol": Number(
        "nats per symbol",
        lambda value: f"{value:.3f}",
        "-ELBO of all test texts over their number of symbols, the end of each being one; lower is "
        "better.",
    ),
    "perplexity": Number(
        "perplexity per symbol, at most",
        lambda value: f"{value:,.2f}",
        "The exponential of the nats per symbol; an upper bound of the perplexity, as the ELBO is "
        "a lower one of log p(x). It compares only with that of the same symbols.",
    ),
    "sampled_perplexity": Number(
        "perplexity per symbol by importance sampling",
        lambda value: f"{value:,.2f}",
        "The same of the test log-likelihood, which is nearer to log p(x).",
    ),
    "symbols_per_datum": Number(
        "symbols per text, its end among them",
        lambda value: f"{value:,.1f}",
        "On average over the test data: what nats per symbol are divided by.",
    ),
    "word_perplexity": Number(
        "perplexity of words, at most",
        lambda value: f"{value:,.1f}",
        "exp of -ELBO over the number of words of each document, averaged over test documents, of "
        "the words in their order; an upper bound of the perplexity, lower is better.",
    ),
    "topic_npmi": Number(
        "coherence of topics (NPMI)",
        lambda value: f"{value:.3f}",
        "How often the ten first words of a topic occur in the same training documents, -1 to 1, "
        "averaged over topics, with the error over these; it compares only with that of the same "
        "documents, window (a whole document) and number of words.",
    ),
    "topic_diversity": Number(
        "diversity of topics",
        percent,
        "Different words among the 25 first words of all topics.",
    ),
    "test_reconstruction_nats": Number(
        "test reconstruction, log p(x | z) (nats per datum)",
        nats,
        "The log-density of the test data given their codes; no bound of log p(x).",
    ),
    "test_squared_error": Number(
        "test squared error (per number)",
        lambda value: f"{value:,.4g}",
        "Of the mean of x given its code, in squared units of the data as they are observed.",
    ),
    "active_codes": Number(
        "codes that are not zero (per datum)", count, "On average over the test data."
    ),
    "codes_used": Number("codes used", count, "Codes of the codebook that occur in the test data."),
    "code_perplexity": Number(
        "perplexity of the codes",
        lambda value: f"{value:,.1f}",
        "The exponential of the entropy of the codes' shares: from 1 to the number of codes.",
    ),
    "test_rate_nats": Number(
        "rate, KL (nats per datum)",
        nats,
        "E_q[log q(z | x) - log p(z)]: the KL of the posterior from the prior, what z tells of x.",
    ),
    "test_distortion_nats": Number(
        "distortion, reconstruction NLL (nats per datum)",
        nats,
        "E_q[-log p(x | z)]: what z leaves untold; the ELBO is -(rate + distortion).",
    ),
    "test_site_distortion_nats": Number(
        "distortion, reconstruction NLL (nats per datum)", nats, "That of one site."
    ),
    "active_units": Number(
        "active latent units",
        count,
        "Units whose posterior mean varies over the data by a variance of more than 0.01 "
        "(Burda, Grosse, Salakhutdinov, 2016).",
    ),
    "mutual_information_nats": Number(
        "mutual information of data and latents (nats)",
        nats,
        "What z tells which of the test data it was drawn from; at most the logarithm of their "
        "number (Hoffman, Johnson, 2016).",
    ),
    "aggregate_kl_nats": Number(
        "marginal KL, KL(q(z) || p(z)) (nats)",
        nats,
        "KL of the mixture of these data's posteriors from the prior: the rate less the mutual "
        "information; too large by as much as that is too small.",
    ),
    "valid_share": Number(
        "samples that are molecules",
        share,
        "By rdkit, of draws with z from the prior. It says nothing of the latents: a model that "
        "ignores them may write molecules; see the mutual information, and what comes back.",
    ),
    "unique_share": Number(
        "of these, different molecules", share, "More samples have fewer; see their number."
    ),
    "novel_share": Number(
        "of these, not among the training data", share, "However they are written."
    ),
    "internal_diversity": Number(
        "internal diversity of the samples",
        lambda value: f"{value:.3f}",
        "1 less the mean Tanimoto similarity of all pairs of Morgan fingerprints; 0 if all are one "
        "molecule.",
    ),
    "property_distance": Number(
        "distance of valid samples from the test data (Wasserstein)",
        lambda value: f"{value:.3f}",
        "Of the distributions of a property, in its units: logP (octanol and water), QED (like a "
        "drug, 0 to 1) or SA (hard to make, 1 to 10).",
    ),
    "property_mean": Number(
        "mean of valid samples (rdkit)", lambda value: f"{value:.3f}", "Of the property."
    ),
    "same_smiles_share": Number(
        "test data that come back symbol by symbol",
        share,
        "The likeliest symbols given the mean of the latents.",
    ),
    "same_molecule_share": Number(
        "test data that come back as the same molecule", share, "However it is written."
    ),
    "drawn_same_molecule_share": Number(
        "the same by draws of z and x", share, "One of each for each datum."
    ),
    "drawn_valid_share": Number(
        "reconstructions by draws that are molecules",
        share,
        "More than of the samples where the prior has z that no datum leads to.",
    ),
    "num_sampled_molecules": Number("samples judged as molecules", count, "Drawn from the model."),
    "num_reconstructed_molecules": Number(
        "test data that may come back", count, "The first ones of the test data."
    ),
    "aggregate_kl_before_nats": Number(
        "marginal KL from the old prior (nats)",
        nats,
        "The same, of the same draws, from the prior that was replaced.",
    ),
    "probe_accuracy": Number(
        "linear probe accuracy",
        percent,
        "Test data whose label a logistic regression on the posterior means predicts.",
    ),
    "test_accuracy": Number(
        "test accuracy",
        percent,
        "Test data whose label is the likeliest class of q(y | x), which is not given it.",
    ),
    "cluster_accuracy": Number(
        "cluster accuracy",
        percent,
        "Test data in the cluster of their class, each class matched with the cluster that has "
        "most of it.",
    ),
    "cluster_information": Number(
        "mutual information of clusters and classes, normalised",
        lambda value: f"{value:.3f}",
        "2 I(cluster; class) / (H(cluster) + H(class)): 0 where they are independent, 1 where one "
        "tells the other.",
    ),
    "num_importance_samples": Number(
        "importance samples per datum",
        count,
        "Draws from the guide for each estimate of log p(x).",
    ),
    "effective_sample_size": Number(
        "effective sample size (median)",
        count,
        "1 / sum of squared normalised importance weights, median over the test data; near 1, "
        "the log-likelihood is too low.",
    ),
    "annealed_log_likelihood_nats": Number(
        "AIS log-likelihood (nats per datum)",
        nats,
        "log p(x) of the first test data by annealed importance sampling, from the guide, or from "
        "the prior where the guide is a flow without an inverse; in expectation a lower bound that "
        "tightens with the number of temperatures (Neal, 2001).",
    ),
    "sampled_log_likelihood_nats": Number(
        "IS log-likelihood of the same data (nats per datum)",
        nats,
        "log p(x) of the same data with the guide as proposal; the larger of the two is nearer.",
    ),
    "bracket_nats": Number(
        "BDMC gap (nats per datum)",
        nats,
        "How far apart the lower and the upper bound on log p(x) are, on data that the model "
        "simulated: how far off annealing can be (Grosse, Ghahramani, Adams, 2015).",
    ),
    "inference_gap_nats": Number(
        "inference gap (nats per datum)",
        nats,
        "log p(x), by the larger estimate, less the ELBO (Cremer, Li, Duvenaud, 2018).",
    ),
    "approximation_gap_nats": Number(
        "approximation gap (nats per datum)",
        nats,
        "log p(x) less the ELBO of each datum's best q.",
    ),
    "amortization_gap_nats": Number(
        "amortization gap (nats per datum)",
        nats,
        "The ELBO of each datum's best q of the family, less the encoder's.",
    ),
    "annealing_acceptance": Number(
        "HMC acceptance rate",
        percent,
        "By Hamiltonian Monte Carlo; about 65 % is good.",
    ),
    "annealing_effective_sample_size": Number(
        "AIS effective sample size (median)",
        count,
        "1 / sum of squared normalised weights of a datum's chains; near 1, anneal more slowly.",
    ),
    "annealing_seconds": Number(
        "AIS time (seconds)",
        lambda value: f"{value:,.1f}",
        "What annealing took, with the bracket where there is one; it grows with the temperatures.",
    ),
    "num_temperatures": Number("AIS temperatures", count, "Steps from the prior to p(x, z)."),
    "num_diagnosed": Number("test data of AIS and gaps", count, "The first ones of the test data."),
    "num_simulated": Number("data simulated for the BDMC gap", count, "By the model."),
    "num_test": Number(
        "test data", count, "Data behind every test number, never trained on but for those below."
    ),
    "num_trained_on": Number(
        "of these, trained on", count, "Rows of these other data that the run was trained on."
    ),
    "num_parameters": Number("trainable parameters", count, "Of model and guide together."),
    "weights": Number(
        "evaluated weights",
        count,
        "The best by the ELBO of the validation data, or the last; test data choose nothing.",
    ),
    "evaluated_epoch": Number(
        "epoch of these weights", count, "After which the program had these weights."
    ),
    "refit_of": Number("refitted from", count, "The run whose prior was replaced."),
    "init_from": Number("started from", count, "Another run's weights, before the first step."),
    "epochs": Number("epochs", count, "Passes over the training data."),
    "steps": Number("steps", count, "Updates of the parameters."),
    "seconds": Number("training time (seconds)", lambda value: f"{value:,.1f}", "Wall clock."),
}
PARTNERS = {
    "test_elbo_standard_error": "test_elbo_nats",
    "refit_gained_standard_error": "refit_gained_nats",
    "elbo_before_standard_error": "elbo_before_nats",
    "code_gained_standard_error": "code_gained_nats",
    "code_log_density_standard_error": "code_log_density_nats",
    "code_log_density_before_standard_error": "code_log_density_before_nats",
    "test_log_likelihood_standard_error": "test_log_likelihood_nats",
    "annealed_log_likelihood_standard_error": "annealed_log_likelihood_nats",
    "sampled_log_likelihood_standard_error": "sampled_log_likelihood_nats",
    "bracket_standard_error": "bracket_nats",
    "inference_gap_standard_error": "inference_gap_nats",
    "approximation_gap_standard_error": "approximation_gap_nats",
    "amortization_gap_standard_error": "amortization_gap_nats",
    "word_perplexity_standard_error": "word_perplexity",
    "topic_npmi_standard_error": "topic_npmi",
    "test_reconstruction_standard_error": "test_reconstruction_nats",
    "test_squared_error_standard_error": "test_squared_error",
    **{
        f"{name}_share_standard_error": f"{name}_share"
        for name in (
            "valid",
            "unique",
            "novel",
            "same_smiles",
            "same_molecule",
            "drawn_same_molecule",
            "drawn_valid",
        )
    },
    "num_units": "active_units",
    "num_codes": "codes_used",
    "mutual_information_ceiling": "mutual_information_nats",
    "num_chains": "annealing_effective_sample_size",
}
WHOLES = {
    "num_codes": "of {}",
    "num_units": "of {}",
    "num_chains": "of {}",
}
# What earlier versions called numbers in `results.json`.
RENAMED = {"judged_epoch": "evaluated_epoch"}
