import dataclasses

import pytest

from latent_prior.stage2_prior.options import PriorOptions


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "width"),
        ({"depth": 0}, "depth"),
        ({"heads": 0}, "heads"),
        ({"width": 100, "heads": 8}, "multiple of 2 x heads = 16"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"dropout": 1.5}, "dropout"),
        ({"label_dropout": -0.1}, "label_dropout"),
    ],
)
def test_impossible_shapes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PriorOptions(), **wrong)
