"""Everything that is trained, with everything random in it, for one process and for two."""

from collections.abc import Iterator
from pathlib import Path

import datasets

from tests.conftest import FAMILY, TINY_PRIOR, TINY_VQVAE

Main = tuple[str, str, dict[str, object]]
"""Module of an entry script, name of its folder, flags."""

_AUTOENCODER = "latent_prior.stage1_autoencoders.train"
_ENCODE = "latent_prior.stage1_autoencoders.encode"
_PRIOR = "latent_prior.stage2_prior.train"
_GAN = "latent_prior.evaluation.gan_baseline.train"
_STEPS = {"batch_size": 8, "max_steps": 12, "log_every": 1, "evaluate_every": 6}
_AUGMENTED = ["color", "translation", "cutout"]


def mains(root: Path) -> list[Main]:
    """Calls of entry scripts, which read what one process has made in `root / "1"` before.

    They also read `root / "captioned"`, a folder of images, its copy in `root / "shards"`, and the
    text encoder in `root / "encoder"`.
    """
    scripts = [(_AUTOENCODER, _autoencoders), (_ENCODE, _encodings), (_PRIOR, _priors)]
    scripts.append((_GAN, _gans))
    return [(module, *each) for module, several in scripts for each in several(root)]


def _autoencoders(root: Path) -> Iterator[tuple[str, dict[str, object]]]:
    run = {
        **_STEPS,
        "dataset": root / "captioned",
        "image_size": 16,
        "random_crop": True,
        "crop_padding": 2,
        "random_flip": True,
        "validation_split": "train",
    }
    critic = {
        "critic.adaptive": True,
        "critic.start_step": 2,
        "critic.lecam": 0.1,
        "critic.r1": 1,
        "critic.r1_every": 2,
        "critic.augment": _AUGMENTED,
    }
    streamed = {"dataset": root / "shards", "streaming": True, "channels": 3}
    restarting = {"model.codebook_decay": 0.5, "model.restart_below": 0.9}
    yield "ema", {**run, **TINY_VQVAE}
    yield "gradient", {**run, **TINY_VQVAE, **restarting, "model.quantizer": "gradient"}
    yield "vae", {**run, **FAMILY["vae"]}
    yield "vqvae2", {**run, **FAMILY["vqvae2"]}
    yield "vaegan", {**run, **FAMILY["vaegan"], **critic, **streamed}
    yield "vqgan", {**run, **FAMILY["vqgan"], **critic}


def _encodings(root: Path) -> Iterator[tuple[str, dict[str, object]]]:
    encoding = {
        "dataset": root / "captioned",
        "crops": 1,
        "crop_padding": 2,
        "flip": True,
        "shard_images": 7,
    }
    yield "codes", {**encoding, "autoencoder": root / "1/ema/model"}
    yield "latents", {**encoding, "autoencoder": root / "1/vae/model", "posterior": "sample"}


def _priors(root: Path) -> Iterator[tuple[str, dict[str, object]]]:
    run = {**_STEPS, **TINY_PRIOR, "codes": root / "1/codes"}
    masked = {"model.order": "masked", "model.gradient_checkpointing": True}
    yield "prior", {**run, "autoencoder": root / "1/ema/model", "model.trained_guidance": 1.5}
    yield "masked_prior", {**run, **masked}
    text = {**run, "model.condition": "text"}
    yield "text_prior", text  # the main process alone learns the tokenizer, or runs the encoder
    yield "encoder_prior", {**text, "text_encoder": root / "encoder"}
    yield "density", {**run, "codes": root / "1/latents"}


def _gans(root: Path) -> Iterator[tuple[str, dict[str, object]]]:
    run = {
        **_STEPS,
        "dataset": root / "captioned",
        "random_flip": True,
        "model.latent_dim": 8,
        "model.width": 8,
        "model.multipliers": [1, 2],
        "model.blocks": 1,
        "critic.gamma": 0.5,
        "critic.penalty_every": 2,
    }
    yield "sngan", {**run, "model.type": "sngan", "augment": _AUGMENTED}
    # Without cutout: where pixels are 0, the first activations are a new critic's biases. Their
    # gradients by originals and fakes cancel, so rounding decides on which side of a kink they are.
    yield "r3gan", {**run, "model.type": "r3gan"}


def write_shards(folder: Path, images: Path) -> None:
    """The PNG files below `images` in three parquet shards."""
    folder.mkdir()
    files = sorted(images.rglob("*.png"))
    for shard in range(3):
        rows = [{"bytes": path.read_bytes(), "path": None} for path in files[shard::3]]
        table = datasets.Dataset.from_dict({"image": rows})
        table.to_parquet(folder / f"train-{shard:05d}-of-00003.parquet")


TRAINED = [name for module, name, _ in mains(Path()) if module != _ENCODE]
RESUMED = {"1": "prior", "2": "vaegan"}
"""What a number of processes goes on with, `resumed_NAME` in its folder, begun by the other one."""
HALF = {"max_steps": 6}
