import math
import warnings

import numpy as np
import pytest
import torch

from latent_prior.evaluation.measures.inception_score import inception_score


def softmax(logits):
    return torch.from_numpy(logits).softmax(1).numpy()


def logits(count, classes=12, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(size=(count, classes)) * scale


def test_score_is_the_papers_formula():
    given = softmax(logits(30))
    marginal = [sum(row[c] for row in given) / 30 for c in range(12)]
    divergence = sum(p * math.log(p / q) for row in given for p, q in zip(row, marginal, strict=True)) / 30  # fmt: skip
    mean, deviation = inception_score(given, splits=1)
    assert mean == pytest.approx(math.exp(divergence), rel=1e-12)
    assert deviation == 0


@pytest.mark.parametrize("splits", [1, 5])
def test_score_agrees_with_torchmetrics(splits):
    given = logits(500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its large buffer
        metric = pytest.importorskip("torchmetrics.image.inception").InceptionScore(
            feature=torch.nn.Identity(), splits=splits
        )
        metric.update(torch.from_numpy(given))
        mean, _ = metric.compute()
    found, _ = inception_score(softmax(given), splits)
    assert found == pytest.approx(mean.item(), rel=1e-6 if splits == 1 else 0.02)


def test_score_goes_from_1_to_the_number_of_classes():
    sure = np.eye(8, dtype=np.float32)[np.arange(800) % 8]  # 0 log 0 is 0
    assert inception_score(sure, splits=1)[0] == pytest.approx(8)
    assert inception_score(np.full((40, 8), 1 / 8)) == (pytest.approx(1), pytest.approx(0))
    assert inception_score(sure[:1].repeat(50, 0))[0] == pytest.approx(1)  # one class only
    unsure = 0.5 * sure + 0.5 / 8
    assert 1 < inception_score(unsure)[0] < inception_score(sure)[0]


@pytest.mark.parametrize("order", ["by class", "in turn"])
def test_folders_that_go_by_class_score_what_they_show(order):
    """Contiguous splits (the paper's code), or every tenth image, would hold one class: score 1."""
    classes = np.repeat(np.arange(10), 100) if order == "by class" else np.arange(1000) % 10
    given = np.eye(10)[classes]
    assert inception_score(given)[0] > 9
    parts = given.reshape(10, 100, 10) if order == "by class" else given.reshape(100, 10, 10).transpose(1, 0, 2)  # fmt: skip
    peers = [inception_score(part, splits=1)[0] for part in parts]
    assert peers == pytest.approx([1] * 10)


def test_score_has_the_deviation_of_its_parts_and_takes_few_images():
    given = softmax(logits(400))
    mean, deviation = inception_score(given)
    assert 0 < deviation < mean
    assert inception_score(given) == (mean, deviation)
    assert inception_score(given[:3]) == (pytest.approx(1), pytest.approx(0))  # parts of one image
    assert inception_score(given[:1]) == (pytest.approx(1), 0)
    narrow = inception_score(given.astype(np.float32))[0]
    assert narrow == pytest.approx(mean, rel=1e-5)
    with pytest.raises(AssertionError, match="no images"):
        inception_score(given[:0])
