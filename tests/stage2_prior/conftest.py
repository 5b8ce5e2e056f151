from collections.abc import Callable

import pytest
import torch

from common.codes import CodeSpec, Level
from stage2_prior.prior import PriorConfig, TransformerPrior

MakePrior = Callable[..., TransformerPrior]


def code_spec(*levels: tuple[int, int, int], num_classes: int = 3) -> CodeSpec:
    """A spec of levels (height, width, vocabulary)."""
    return CodeSpec(
        kind="codes",
        levels=tuple(
            Level(
                "codes" if len(levels) == 1 else f"level{i}", height, width, vocabulary=vocabulary
            )
            for i, (height, width, vocabulary) in enumerate(levels)
        ),
        image_size=16,
        image_channels=1,
        autoencoder_type="test",
        autoencoder_fingerprint="0" * 64,
        class_names=tuple(f"class {number}" for number in range(num_classes)),
    )


@pytest.fixture
def make_spec() -> Callable[..., CodeSpec]:
    return code_spec


@pytest.fixture
def make_prior() -> MakePrior:
    """A tiny prior in evaluation mode whose weights are far from their start, so that its logits differ visibly."""

    def make(
        *levels: tuple[int, int, int], num_classes: int = 3, spread: float = 5.0, **options: object
    ) -> TransformerPrior:
        torch.manual_seed(0)
        shape = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0, "label_dropout": 0.0}
        spec = code_spec(*(levels or ((3, 4, 11),)), num_classes=num_classes)
        prior = TransformerPrior(PriorConfig(code_spec=spec.to_dict(), **{**shape, **options}))
        with torch.no_grad():
            for parameter in prior.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter *= spread
        return prior.eval()

    return make
