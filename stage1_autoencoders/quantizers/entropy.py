"""The entropy loss: confident assignments, uniform codebook usage.

With soft assignments p(c | z) = softmax over c of -|z - c|^2 / T, the loss is the mean entropy of
p(. | z) minus the entropy of the mean of p(. | z), in nats; means are over the vectors of all
processes (Yu et al., 2023, https://arxiv.org/abs/2310.05737). Probabilities are clamped so that the
gradient of the log stays finite.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EXACT_SIGNS = 18
"""Up to this many signs, the entropy of the mean is computed over all 2^d codes."""
# Probabilities held at once; the backward pass recomputes them block by block.
_TILE_CPU = 2**20
_TILE_GPU = 2**25


def codebook_entropy(
    vectors: Tensor, codebook: Tensor, temperature: float, *, joint: bool
) -> Tensor:
    """The loss over a table of codes, with gradient to both arguments; memory does not depend on N.

    Args:
        vectors: float32 (N, D).
        codebook: float32 (K, D).
        temperature: T, in units of squared distance.
        joint: average over all processes, which must all call this with equally many vectors.

    Returns:
        Scalar from -log(K) to 0.
    """
    tile = _TILE_CPU if vectors.device.type == "cpu" else _TILE_GPU
    blocks = vectors.split(max(1, tile // len(codebook)))
    # Centring removes the rounding error of a common offset. It also copies the codebook, which an
    # EMA update moves in place before the backward pass recomputes the blocks.
    centre = codebook.detach().mean(0)
    keys = codebook - centre
    entropy, usage = vectors.new_zeros(()), vectors.new_zeros(len(codebook))
    for block in blocks:
        if len(blocks) == 1:
            block_entropy, block_usage = _assign(block, centre, keys, temperature)
        else:
            block_entropy, block_usage = checkpoint(
                _assign,
                block,
                centre,
                keys,
                temperature,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        entropy, usage = entropy + block_entropy, usage + block_usage
    return entropy / len(vectors) - _entropy(_mean(usage / len(vectors), joint=joint))


def sign_entropy(vectors: Tensor, scale: float, temperature: float, *, joint: bool) -> Tensor:
    """The loss over all 2^d codes with entries +-scale; p(. | z) factorises over dimensions.

    The entropy of p(. | z) is the sum of the signs' entropies. The mean of p(. | z) is a matrix
    product, codes of the first half of the signs times codes of the second half, so it is exact up
    to `EXACT_SIGNS` dimensions, in memory that grows with N 2^(d/2). Above, the entropy of the mean
    is replaced by the sum of the entropies of each sign's mean (Zhao et al., 2024,
    https://arxiv.org/abs/2406.07548), an upper bound that independent signs attain.

    Args:
        vectors: float32 (N, d).
        scale: absolute value of a code's entries.
        temperature: T, in units of squared distance.
        joint: average over all processes, which must all call this with equally many vectors.

    Returns:
        Scalar from -d log(2) to 0.
    """
    logits = vectors * (4 * scale / temperature)  # log of p(+) / p(-)
    size = logits.abs()
    # log(1 + e^-x) + x / (1 + e^x), without cancellation
    entropy = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()
    d = vectors.shape[1]
    if d > EXACT_SIGNS:
        plus = _mean(torch.sigmoid(logits).mean(0), joint=joint)
        return entropy - _entropy(torch.stack([plus, 1 - plus]))
    first, second = (_sign_codes(half) for half in logits.split([d // 2, d - d // 2], 1))
    return entropy - _entropy(_mean(first.T @ second / len(vectors), joint=joint))


def _assign(
    vectors: Tensor, centre: Tensor, keys: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sums over vectors (N, D): the entropies of their soft assignments, the assignments (K,).

    The codes are `centre` (D,) + `keys` (K, D).
    """
    # Without |z|^2, which is the same for all codes.
    scores = torch.addmm(keys.square().sum(1), vectors - centre, keys.T, beta=-1, alpha=2)
    logs = F.log_softmax(scores / temperature, dim=1)
    probabilities = logs.exp()
    return -(probabilities * logs).sum(), probabilities.sum(0)


def _sign_codes(logits: Tensor) -> Tensor:
    """Probabilities (N, 2^h) of all combinations of independent signs with logits (N, h)."""
    h = logits.shape[1]
    bits = torch.arange(2**h, device=logits.device)[:, None] >> torch.arange(
        h, device=logits.device
    )
    return F.softmax(logits @ (bits & 1).to(logits).T, dim=1)


def _mean(local: Tensor, *, joint: bool) -> Tensor:
    """Mean over processes, with the local gradient: averaging gradients gives the mean's."""
    if not (joint and dist.is_initialized()):
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size() + (local - local.detach())


def _entropy(probabilities: Tensor) -> Tensor:
    """Sum of -p log(p)."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(smallest).log()).sum()
