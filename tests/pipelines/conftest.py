from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_prior.data.codes import CodeMaps
from latent_prior.pipelines import Pipeline

# Every family member, and what changes the form of its latents or codes.
MEMBERS = {
    "vae": ("vae", {}),
    "vae grid": ("vae", {"latent_dim": None}),
    "vqvae": ("vqvae", {}),
    "vqvae residual": ("vqvae", {"quantizer": "residual", "residual_stages": 2}),
    "vqvae2": ("vqvae2", {}),
    "vaegan": ("vaegan", {}),
    "vqgan": ("vqgan", {}),
}


class Plain:
    """Instead of a pipeline: images are their own vectors, in two levels of half the channels."""

    def embed(self, images: torch.Tensor) -> CodeMaps:
        top, bottom = images.chunk(2, dim=1)
        return {"top": top, "bottom": bottom}

    def decode_vectors(self, vectors: CodeMaps) -> torch.Tensor:
        return torch.cat([vectors["top"], vectors["bottom"]], dim=1)


@pytest.fixture
def plain() -> Plain:
    return Plain()


@pytest.fixture(scope="session", params=MEMBERS)
def member(request, parts) -> Pipeline:
    """A pipeline of each member, with a prior where it has codes."""
    return make_pipeline(request.param, parts)


@pytest.fixture(scope="session", params=[name for name in MEMBERS if name.startswith("vq")])
def coded_member(request, parts) -> Pipeline:
    """A pipeline of each member that has codes, with a prior."""
    return make_pipeline(request.param, parts)


def make_pipeline(member: str, parts: dict[str, Any]) -> Pipeline:
    name, shape = MEMBERS[member]
    autoencoder = parts["autoencoder"](name, **shape)
    codes = autoencoder.code_spec.kind == "codes"
    return Pipeline(autoencoder, parts["prior"](autoencoder) if codes else None)


@pytest.fixture(scope="session")
def member_folder(member, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("member") / "pipeline"
    member.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures() -> Callable[..., torch.Tensor]:
    """`pictures(count)`: random images of 16 x 16 in [-1, 1]."""

    def make(count: int = 6, seed: int = 0) -> torch.Tensor:
        return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    return make
