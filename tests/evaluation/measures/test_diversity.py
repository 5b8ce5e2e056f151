import itertools
import math

import numpy as np
import pytest

from latent_prior.evaluation.measures import diversity
from latent_prior.evaluation.measures.diversity import within_class_diversity


def labelled(count, classes, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    centres = np.random.default_rng(9).normal(size=(classes, 6)) * 30
    features = centres[labels] + generator.normal(size=(count, 6)) * scale
    return features.astype(np.float32), labels


@pytest.mark.parametrize("block", [1024, 4])
def test_diversity_is_the_mean_over_pairs(monkeypatch, block):
    monkeypatch.setattr(diversity, "BLOCK", block)
    features, labels = labelled(41, 3)
    means = []
    for label in range(3):
        members = features[labels == label].astype(np.float64)
        means.append(np.mean([math.dist(a, b) for a, b in itertools.combinations(members, 2)]))
    assert within_class_diversity(features, labels) == pytest.approx(np.mean(means), rel=1e-5)


def test_diversity_is_of_classes_not_between_them():
    narrow, labels = labelled(200, 4, scale=0.5)
    wide, _ = labelled(200, 4, scale=1.0)
    found = within_class_diversity(wide, labels)
    assert found == pytest.approx(2 * within_class_diversity(narrow, labels), rel=1e-4)
    confused = np.random.default_rng(1).permutation(labels)
    assert within_class_diversity(wide, confused) > 3 * found


def test_one_image_a_class_has_no_diversity():
    features, labels = labelled(60, 3)
    copies = features[[np.flatnonzero(labels == label)[0] for label in labels]]
    assert within_class_diversity(copies, labels) == 0
    still = np.full((9, 1280), 7.1, np.float32)
    assert within_class_diversity(still, np.zeros(9, np.int64)) == 0


def test_diversity_does_not_depend_on_order_or_offset():
    features, labels = labelled(90, 3)
    expected = within_class_diversity(features, labels)
    mixed = np.random.default_rng(3).permutation(90)
    assert within_class_diversity(features[mixed], labels[mixed]) == pytest.approx(expected)
    assert within_class_diversity(features + 500, labels) == pytest.approx(expected, rel=1e-3)


def test_images_without_a_class_and_classes_of_one_image_are_left_out():
    features, labels = labelled(30, 2)
    expected = within_class_diversity(features, labels)
    more = np.concatenate((features, features[:3] + 100))
    assert within_class_diversity(more, np.append(labels, [-1, -1, 7])) == pytest.approx(expected)
    assert math.isnan(within_class_diversity(features[:2], np.array([0, 1])))
    assert math.isnan(within_class_diversity(features[:0], labels[:0]))
