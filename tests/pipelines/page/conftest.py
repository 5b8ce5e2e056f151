from collections.abc import Callable, Iterator

import pytest
import torch

from latent_prior.pipelines import Pipeline
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer

gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")

from latent_prior.pipelines.page.shown import Shown

WORDS = ["a red circle", "a blue square, top left", "a red star"]


@pytest.fixture(scope="session")
def pipes(parts) -> dict[str, Pipeline]:
    """A pipeline of each kind: their tabs differ."""
    codes, maps = parts["vqvae"](), parts["autoencoder"]("vqvae2")
    grid = parts["autoencoder"]("vae", latent_dim=None)
    tokenizer = CaptionTokenizer.train(WORDS * 2, 300)
    text = prior_over(codes, condition="text", text=tokenizer.spec)
    text.tokenizer = tokenizer
    return {
        "codes": Pipeline(codes, parts["prior"](codes)),
        "masked": Pipeline(codes, prior_over(codes, order="masked")),
        "two maps": Pipeline(maps, parts["prior"](maps)),
        "text": Pipeline(codes, text),
        "codes alone": Pipeline(codes),
        "latents alone": Pipeline(grid),
    }


def prior_over(autoencoder: torch.nn.Module, **options: object) -> TransformerPrior:
    torch.manual_seed(2)
    spec = autoencoder.code_spec.to_dict() | {"class_names": ["apple", "bee", "car"]}
    shape = {"width": 16, "depth": 2, "heads": 2}
    prior = TransformerPrior(PriorConfig(code_spec=spec, **shape, **options)).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.ndim > 1:
                parameter *= 5
    return prior


@pytest.fixture
def shown(pipes) -> Callable[[str], Shown]:
    return lambda kind: Shown(pipes[kind], f"runs/{kind}/pipeline")


@pytest.fixture(scope="module")
def served(pipeline_folder) -> Iterator[str]:
    """The address of a page with a pipeline of codes with classes, within this process."""
    from latent_prior.pipelines.page.layout import build, serve

    shown = Shown(Pipeline.from_pretrained(pipeline_folder), str(pipeline_folder))
    page = build(shown)
    yield serve(page, host="127.0.0.1", port=None, share=False, wait=False)
    page.close()
