import json
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latent_prior.data.images import open_images, to_float
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline, Sampler, app
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig
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


@pytest.fixture(scope="session")
def digits():
    """The training images of mnist5k, float (N, 1, 28, 28), and their classes."""
    images = open_images(ImageOptions(dataset="mnist5k", image_size=28, channels=1), "train")
    return to_float(images.crops(range(len(images)))), images.labels


@pytest.fixture(scope="session")
def by_heart(digits, tmp_path_factory) -> Path:
    """A pipeline that has learned one image of each digit by heart."""
    images, labels = digits
    torch.manual_seed(0)
    shape = {"width": 16, "multipliers": [1, 2, 2], "blocks": [0, 0, 0]}
    codebook = {"codebook_size": 64, "code_dim": 8, "quantizer": "gradient"}
    model = VQVAE(VQVAEConfig(image_size=28, image_channels=1, **shape, **codebook))
    chosen = torch.stack([images[labels == digit][0] for digit in range(10)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        output = model(chosen)
        loss = model.objective(chosen, output, step)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    spec = model.code_spec.to_dict() | {"class_names": [str(digit) for digit in range(10)]}
    prior = TransformerPrior(PriorConfig(code_spec=spec, width=64, depth=2, heads=2, dropout=0.0))
    codes, classes = model.encode(chosen), torch.arange(10)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    learned, steps = False, 0
    while not learned:
        loss = prior(codes, classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        assert steps < 2000
        if steps % 50 == 0:
            drawn = prior.eval().sample(10, classes, temperature=0)
            learned = torch.equal(drawn["codes"], codes["codes"])
            prior.train()
    folder = tmp_path_factory.mktemp("by_heart") / "digits"
    Pipeline(model, prior, Sampler(temperature=0.0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def address(by_heart, images, tmp_path_factory):
    """Of a page in a process of its own."""
    log = tmp_path_factory.mktemp("server") / "log"
    words = [sys.executable, str(Path(app.__file__)), "--pipeline", str(by_heart)]
    words += ["--images", f"real={images}", "--second", str(by_heart), "--port", str(free_port())]
    with log.open("w") as file:
        server = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while (found := re.search(r"^page: (\S+)", log.read_text(), re.MULTILINE)) is None:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield found[1]
    finally:
        server.terminate()
        server.wait(60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def ask(address) -> Callable[..., list[list[Any]]]:
    """`ask(name, *values)`: what an event of the page shows, one list for each update.

    Its last one is None if the server refused the values.
    """
    config = httpx.get(f"{address}config", timeout=120).json()
    numbers = {each["api_name"]: each["id"] for each in config["dependencies"]}

    def join(name: str, *values: Any) -> list[Any]:
        session, shown = uuid.uuid4().hex, []
        body = {"data": values, "fn_index": numbers[name], "session_hash": session}
        httpx.post(f"{address}gradio_api/queue/join", json=body, timeout=120).raise_for_status()
        url = f"{address}gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", url, timeout=120) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
                if message["msg"] == "process_generating":
                    shown.append(message["output"]["data"])
                elif message["msg"] == "process_completed":
                    if not message["success"]:
                        shown.append(message["output"])
                    return shown
        raise AssertionError("the stream ended early")

    return join
