"""Classes that a guide finds: probabilities, agreement with labels, analogies."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from test_class_models import NONE, X, Y, gmvae, m2

from pyro_vae import VAE, evaluation
from pyro_vae.evaluation import (
    analogies,
    class_probabilities,
    class_samples,
    cluster_accuracy,
    confusion,
    normalized_mutual_information,
)


def test_probabilities_are_those_of_the_classifier():
    for program, args in ((gmvae(), (X,)), (m2(), (X, NONE, NONE >= 0))):
        found = class_probabilities(program, *args, batch_size=5)
        torch.testing.assert_close(found, program.classifier(X).probs.detach())
    given = class_probabilities(m2(), X, Y, Y >= 0)
    torch.testing.assert_close(given, torch.full((6, 3), 1 / 3).double())


def test_agreement_is_that_of_scikit_learn_and_of_the_best_match():
    torch.manual_seed(0)
    found, labels = torch.randint(4, (200,)), torch.randint(3, (200,))
    expected = normalized_mutual_info_score(labels, found)
    assert normalized_mutual_information(found, labels) == pytest.approx(expected)
    counts = confusion(found, labels)
    assert counts.shape == (3, 4)
    assert counts.sum() == 200
    assert counts[1, 2] == ((labels == 1) & (found == 2)).sum()
    # Classes under other names, and one datum of each in a wrong cluster.
    renamed = torch.tensor([2, 0, 1])[labels]
    assert cluster_accuracy(renamed, labels) == 1
    assert normalized_mutual_information(renamed, labels) == pytest.approx(1)
    wrong = renamed.clone()
    for each in range(3):
        wrong[(labels == each).nonzero()[0]] = labels[(labels == each).nonzero()[0]]
    moved = (wrong != renamed).sum().item()
    assert cluster_accuracy(wrong, labels) == pytest.approx(1 - moved / 200)
    hidden = torch.where(torch.arange(200) < 150, labels, -1)
    assert cluster_accuracy(renamed, hidden) == 1


def test_analogies_keep_the_style_and_move_the_class():
    program = m2()
    found = analogies(program, X[:2], NONE[:2], NONE[:2] >= 0)
    assert found.shape == (2, 3, 4)
    q_y = program.classifier(X[:2]).probs
    z = program.posterior(torch.cat([program.features(X[:2]), q_y], -1)).mean
    for k, y in enumerate(program.one_hot):
        mean = program.likelihood(torch.cat([z, y.expand(2, -1)], -1)).mean
        torch.testing.assert_close(found[:, k], mean.detach())


def test_samples_of_each_class():
    program = gmvae()
    found = class_samples(program, X, num_samples=4)
    assert found.shape == (3, 4, 4)
    assert class_samples(m2(), X, NONE, NONE >= 0, num_samples=2).shape == (3, 2, 4)


def test_a_label_that_is_given_is_no_data_to_be_drawn():
    program = m2()
    args = (X, NONE, NONE >= 0)
    assert evaluation.reconstruct(program, *args).shape == X.shape
    assert evaluation.prior_samples(program.model, X, 5, NONE, NONE >= 0).shape == (5, 4)
    torch.manual_seed(0)
    one = evaluation.prior_samples(program.model, X[:1], 200, Y[:1] + 1, Y[:1] >= 0)
    other = evaluation.prior_samples(program.model, X[:1], 200, Y[:1], Y[:1] >= 0)
    assert (one - other).abs().max() > 1e-3
    assert evaluation.elbo(program, *args).site_distortion_nats["y_observed"].value == 0


def test_what_has_no_classes_is_refused():
    vae = VAE.assemble((4,), (2,)).double()
    with pytest.raises(ValueError, match="no site that is enumerated; those that are: none"):
        class_probabilities(vae, X)
    with pytest.raises(ValueError, match=r"'z' is no site that is enumerated.*: 'y'"):
        analogies(gmvae(), X, site="z")
    with pytest.raises(ValueError, match="all are -1"):
        confusion(Y, NONE)
    with pytest.raises(ValueError, match="give one number for each"):
        confusion(Y[:3], Y)
