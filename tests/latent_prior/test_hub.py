"""Upload to and download from a hub on localhost; clients are processes, as on a user's machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tests.latent_prior.samples import encoded, pixels

ROOT = Path(__file__).parents[2]

PUSH = """
import torch
from latent_prior.pipelines import Pipeline, Sampler
from latent_prior.stage1_autoencoders import VQVAE, VQVAEConfig
torch.manual_seed(0)
model = VQVAE(VQVAEConfig(width=8, multipliers=[1, 2], blocks=1, code_dim=4, codebook_size=16, image_size=16))
model.push_to_hub("tester/vqvae")
Pipeline(model, sampler=Sampler(temperature=0.5)).push_to_hub("tester/pipeline")
said(model.fingerprint)
"""

PULL = """
from latent_prior.data.images import open_images, open_stream
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import VQVAE, load_autoencoder
said(VQVAE.from_pretrained("tester/vqvae").fingerprint)
said(load_autoencoder("tester/vqvae", revision="main").fingerprint)
pipe = Pipeline.from_pretrained("tester/pipeline")
said([pipe.autoencoder.fingerprint, pipe.sampler.temperature])
options = ImageOptions(dataset="tester/data", image_size=8, channels=3)
images = open_images(options, "train")
said([len(images), images.labels.tolist(), int(images.read([4])[0, 0, 0, 0])])
captioned = open_images(ImageOptions(dataset="tester/data", caption_column="prompt"), "train")
said([images.has_captions, captioned.captions([4, 0])])
"""

STREAM = """
from latent_prior.stage1_autoencoders.options import TrainOptions
options = TrainOptions(output_dir="x", dataset="tester/data", image_size=8, channels=3, streaming=True)
said([int(array[0, 0, 0]) for array in open_stream(options, "train").first(9)])
options.dataset = "hf://datasets/tester/data"
said([int(array[0, 0, 0]) for array in open_stream(options, "train").first(9)])
"""

WRONG = """
from latent_prior.data.images import open_images
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import VQVAE
for attempt in (
    lambda: VQVAE.from_pretrained("tester/nothing"),
    lambda: Pipeline.from_pretrained("tester/nothing"),
    lambda: VQVAE.from_pretrained("tester/vqvae", revision="nope"),
    lambda: VQVAE.from_pretrained("tester/pipeline"),
    lambda: Pipeline.from_pretrained("tester/vqvae"),
    lambda: open_images(ImageOptions(dataset="tester/nothing"), "train"),
    lambda: open_images(ImageOptions(dataset="tester/vqvae"), "train"),
    lambda: open_images(ImageOptions(dataset="tester/empty"), "train"),
):
    try:
        attempt()
        said("no error")
    except ValueError as error:
        said(str(error))
"""


def client(code: str, environment: dict[str, str]) -> list:
    """What a client's process `said`, value by value."""
    start = "import json\ndef said(value): print('said', json.dumps(value))\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    return [json.loads(line.removeprefix("said ")) for line in lines]


@pytest.fixture(scope="module")
def hub_double():
    spec = importlib.util.spec_from_file_location("hub_double", ROOT / "tests" / "hub_double.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HubDouble


@pytest.fixture(scope="module")
def hub(hub_double, tmp_path_factory):
    """A hub with a dataset and what a first client has pushed."""
    table = tmp_path_factory.mktemp("table") / "train.parquet"
    images = [{"bytes": encoded(pixels(n)), "path": None} for n in range(5)]
    columns = {
        "image": images,
        "label": [0, 1, 0, 1, 0],
        "prompt": [f"of {n} 🐝" for n in range(5)],
    }
    datasets.Dataset.from_dict(columns).to_parquet(table)
    with hub_double() as hub:
        hub.repos["datasets", "tester/data"] = {
            "data/train-00000-of-00001.parquet": table.read_bytes()
        }
        hub.repos["datasets", "tester/empty"] = {"README.md": b"nothing"}
        (hub.fingerprint,) = client(PUSH, hub.environment(tmp_path_factory.mktemp("pusher")))
        yield hub


def test_what_is_pushed_are_safetensors_and_json_only(hub):
    model = hub.repos["models", "tester/vqvae"]
    pipeline = hub.repos["models", "tester/pipeline"]
    files = {"config.json", "model.safetensors", "code_spec.json", "manifest.json"}
    assert set(model) - {"README.md"} == files
    assert set(pipeline) - {"README.md"} == {
        "pipeline.json", "manifest.json", *(f"autoencoder/{name}" for name in files),
    }  # fmt: skip
    assert model["model.safetensors"] == pipeline["autoencoder/model.safetensors"]


TOLD = [
    "there is no folder tester/nothing, and the hub has no such repository",
    "there is no folder tester/nothing, and the hub has no such repository",
    "no such repository or revision",
    "config.json is missing",
    "pipeline.json is missing",
    "--dataset tester/nothing: neither a folder here nor a dataset on the hub",
    "--dataset tester/vqvae: neither a folder here nor a dataset on the hub",
    "--dataset tester/empty: no such folder here, and the hub's copy cannot be read",
]


def test_what_comes_down_is_what_went_up_also_later_without_a_network(hub, tmp_path):
    environment = hub.environment(tmp_path)
    expected = [
        hub.fingerprint, hub.fingerprint, [hub.fingerprint, 0.5], [5, [0, 1, 0, 1, 0], 4],
        [False, [["of 4 🐝"], ["of 0 🐝"]]],
    ]  # fmt: skip
    found = client(PULL + STREAM + WRONG, environment)
    assert found[:7] == [*expected, list(range(5)), list(range(5))]
    for text, part in zip(found[7:], TOLD, strict=True):
        assert part in text
        assert "\n" not in text

    # Port 9 refuses: cached copies serve without retries, and what is missing is named.
    found = client(PULL + WRONG, {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert found[:5] == expected
    for place in (0, 1, 2, 5, 6, 7):
        assert "cannot be reached" in found[5 + place] or "cannot be read" in found[5 + place]
        assert "check the" in found[5 + place]
        assert "\n" not in found[5 + place]
