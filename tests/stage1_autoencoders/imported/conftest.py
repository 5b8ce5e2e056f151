"""Tokenizers of other projects as their users have them, and as autoencoders."""

import argparse
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latent_prior.stage1_autoencoders import import_tokenizer, load_autoencoder

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PICKLED = {  # checkpoints that hold more than tensors, and what they hold
    "taming_vq_lightning108": "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "llamagen_vq_trainer_ema": "argparse.Namespace",
}


def flags_of(name, source):
    """The flags of the importer for a folder of `checkpoints`."""
    project = name.partition("_")[0]
    flags = {"format": {"ldm": "taming"}.get(project, project), "source": source}
    if project == "llamagen":
        flags |= {"image_size": 32}
        if name == "llamagen_vq_no_l2":
            flags["l2_norm"] = "false"
    return flags


def unpack(name, folder):
    """The files that a user has, in a folder of their own."""
    folder.mkdir(parents=True)
    for path in (CHECKPOINTS / name).iterdir():
        if path.suffix == ".xz":
            (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        elif path.name not in ("expected.safetensors", "arguments.json"):
            shutil.copyfile(path, folder / path.name)
    return folder


def checkpoint_in(folder):
    (path,) = (path for path in folder.iterdir() if path.suffix in (".pt", ".ckpt", ".bin"))
    return path


class StandIn:
    """In the place of a class that a pickle names."""


def read_trusted(path):
    """A checkpoint with the objects in it, as in an environment that has their classes."""
    lightning = (StandIn, PICKLED["taming_vq_lightning108"])
    with torch.serialization.safe_globals([lightning, argparse.Namespace]):
        return torch.load(path, weights_only=True)


def convert(path):
    """What the refusal of a pickle tells the user to do."""
    content = read_trusted(path)
    kept = ("state_dict", "model", "ema")
    torch.save({key: content[key] for key in kept if key in content}, path)


@pytest.fixture(scope="session")
def tokenizer(call, tmp_path_factory):
    """`tokenizer(name)`: the folder that the importer made of a folder of `checkpoints`."""
    made = {}

    def of(name):
        if name.startswith("diffusers"):
            pytest.importorskip("diffusers")
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            source = unpack(name, root / "source")
            if name in PICKLED:
                convert(checkpoint_in(source))
            call(import_tokenizer, output_dir=root / "model", **flags_of(name, source))
            made[name] = root / "model"
        return made[name]

    return of


@pytest.fixture
def source(tmp_path):
    """`source(name)`: the files that a user has, to be changed."""
    return lambda name: unpack(name, tmp_path / name)


@pytest.fixture
def imported(call, tmp_path):
    """`imported(**flags)`: the model that the importer makes."""

    def of(**flags):
        shutil.rmtree(tmp_path / "imported", ignore_errors=True)
        call(import_tokenizer, output_dir=tmp_path / "imported", **flags)
        return load_autoencoder(tmp_path / "imported")

    return of


@pytest.fixture(scope="session")
def inputs():
    return load_file(CHECKPOINTS / "inputs.safetensors")
