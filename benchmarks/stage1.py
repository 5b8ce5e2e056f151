"""Stage one against `diffusers.VQModel` (training) and `VectorQuantize` (look-up).

Every function builds both sides and returns `(ours, peer)`, two callables that do the same work.

Both autoencoders turn 32 x 32 colour images into 8 x 8 codes of 512 vectors of length 16, with 32,
64 and 128 channels at the three resolutions, without attention, with a codebook trained by
gradient. Parameter counts are within 1 %: ours has 2, 3 and 3 residual blocks; the peer one in the
encoder, two in the decoder, two more in each middle, and convolutional shortcuts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from vector_quantize_pytorch import VectorQuantize

from latent_prior.stage1_autoencoders.quantizers.clustering import nearest_codes
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig

Pair = tuple[Callable[[], object], Callable[[], object]]

WIDTHS = (32, 64, 128)
BLOCKS = [2, 3, 3]
CODE_DIM, CODEBOOK_SIZE = 16, 512
TRAIN_BATCH = 16
NUM_VECTORS, LOOKUP_SIZE = 65_536, 8192


def train_step() -> Pair:
    """Forward, backward and AdamW over 16 images."""
    torch.manual_seed(0)
    ours, peer = build_vqvae().train(), build_vqmodel().train()
    images = torch.rand(TRAIN_BATCH, 3, 32, 32) * 2 - 1
    our_step, peer_step = optimizer_step(ours), optimizer_step(peer)

    def step_vqvae() -> None:
        our_step(ours.objective(images, ours(images), 0)["total"])

    def step_vqmodel() -> None:
        reconstructions, codebook_loss = peer(images, return_dict=False)
        peer_step(F.mse_loss(reconstructions, images) + codebook_loss)

    return step_vqvae, step_vqmodel


def matmul_flops(name: str) -> float:
    """Floating-point operations of our side's matrix products and convolutions in one call."""
    if name == "stage1_train_step":
        step, _ = train_step()
        step()  # the first batch also fills the codebook
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()
    return 2 * NUM_VECTORS * LOOKUP_SIZE * int(name.rpartition("_d")[2])


def build_vqvae() -> VQVAE:
    config = VQVAEConfig(
        image_size=32,
        image_channels=3,
        width=WIDTHS[0],
        multipliers=[width // WIDTHS[0] for width in WIDTHS],
        blocks=BLOCKS,
        code_dim=CODE_DIM,
        codebook_size=CODEBOOK_SIZE,
        quantizer="gradient",
    )
    model = VQVAE(config)
    nn.Module.to(model, memory_format=torch.channels_last)  # in place
    return model


def build_vqmodel() -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=CODE_DIM,
        num_vq_embeddings=CODEBOOK_SIZE,
        sample_size=32,
        mid_block_add_attention=False,
    )


def optimizer_step(model: nn.Module, clip: float | None = None) -> Callable[[Tensor], None]:
    """A function of the loss: backward, optional gradient clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(loss: Tensor) -> None:
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def lookup(dim: int) -> Pair:
    """The nearest of 8,192 codes for 65,536 vectors."""
    torch.manual_seed(0)
    peer = VectorQuantize(dim=dim, codebook_size=LOOKUP_SIZE).eval()
    codebook = peer.codebook.detach().clone()
    # As spread out as the codes: what an encoder gives after training.
    vectors = codebook[torch.randint(LOOKUP_SIZE, (NUM_VECTORS,))]
    vectors = vectors + 0.3 * codebook.std() * torch.randn_like(vectors)

    def look_up() -> tuple[Tensor, Tensor]:
        codes = nearest_codes(vectors, codebook)
        return F.embedding(codes, codebook), codes

    def peer_look_up() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            quantized, codes, _ = peer(vectors[None])
        return quantized[0], codes[0]

    return look_up, peer_look_up
