import subprocess
import sys
from pathlib import Path

import gradio
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from latent_prior.pipelines import app
from latent_prior.pipelines.page.layout import build
from tests.pipelines.page.test_generation import asked, shown_pixels

TABS = {
    "codes": ["generate", "reconstruct", "latent", "complete"],
    "masked": ["generate", "reconstruct", "latent", "complete"],
    "two maps": ["generate", "reconstruct", "latent", "complete"],
    "text": ["generate", "reconstruct", "latent", "complete"],
    "codes alone": ["reconstruct", "latent"],
    "latents alone": ["generate", "reconstruct", "latent", "complete"],
}
LABELS = {
    "codes": ["Class", "Top-k"],
    "masked": ["Class", "Top-k", "Rounds"],
    "text": ["Prompt", "Top-k"],
    "latents alone": [],
}


@pytest.mark.parametrize("kind", TABS)
def test_what_a_pipeline_cannot_do_has_no_tab(shown, kind):
    page = build(shown(kind))
    tabs = [block.id for block in page.blocks.values() if isinstance(block, gradio.Tab)]
    assert [tab for tab in tabs if tab is not None] == TABS[kind]


@pytest.mark.parametrize("kind", LABELS)
def test_what_has_no_effect_has_no_control(shown, kind):
    page = build(shown(kind))
    labels = [str(getattr(block, "label", "")) for block in page.blocks.values()]
    found = {
        name: any(label.startswith(name) for label in labels)
        for name in ("Class", "Prompt", "Top-k", "Rounds")
    }
    assert [name for name, there in found.items() if there] == LABELS[kind]


def test_events_that_use_the_model_share_one_place_in_the_queue(shown):
    page = build(shown("codes"))
    named = {fn.api_name for fn in page.fns.values() if fn.queue and fn.fn is not None}
    assert {"generate", "reconstruct"} <= named
    for function in page.fns.values():
        if function.queue and function.fn is not None:
            assert function.concurrency_id == "model", function.api_name


@pytest.fixture(scope="module")
def client(served):
    return Client(served, verbose=False)


def test_the_page_draws_what_the_command_draws(client, served, pipeline_folder):
    from latent_prior.pipelines import Pipeline
    from latent_prior.pipelines.page.shown import Shown

    shown = Shown(Pipeline.from_pretrained(pipeline_folder), str(pipeline_folder))
    job = client.submit(2, 5, "bee", 1.0, 0.9, 0, 1.0, "constant", "0 1", api_name="/generate")
    job.result(timeout=60)
    updates = job.outputs()
    *_, last = asked(shown, num_images=2, label="bee").stream()
    pixels = shown_pixels(updates[-2][1])
    assert len(updates) > 4
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(pixels, last.images, strict=True))
    assert updates[-1][0].startswith('<p role="status">Drawn in')


def test_errors_stand_in_the_page(client, tmp_path):
    said = client.predict(1, -1, "bee", 1.0, 0.9, 0, 1.0, "constant", "0 1", api_name="/generate")
    assert said[0] == '<p role="alert" class="wrong">seed must be at least 0, not -1</p>'
    (tmp_path / "song.png").write_text("la la la")
    said = client.predict(handle_file(tmp_path / "song.png"), api_name="/reconstruct")
    assert "the image cannot be read as an image" in said[0]
    assert "Traceback" not in str(said)
    with pytest.raises(Exception, match=r"maximum|greater|17") as refused:
        client.predict(17, 0, "bee", 1.0, 0.9, 0, 1.0, "constant", "0 1", api_name="/generate")
    assert "File" not in str(refused.value)


def test_only_what_a_visitor_uploaded_can_be_read(served, client, pipeline_folder, tmp_path):
    weights = next(pipeline_folder.rglob("*.safetensors"))
    for path in ("/etc/passwd", str(weights), str(Path(app.__file__)), "/proc/self/environ"):
        answer = httpx.get(f"{served}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    job = {"path": str(weights), "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match=r".") as refused:
        client.predict(job, api_name="/reconstruct")
    assert "safetensors" not in str(refused.value) or "Cannot" in str(refused.value)
    files = {"files": ("large.png", b"0" * ((20 << 20) + 1))}
    assert httpx.post(f"{served}gradio_api/upload", files=files).status_code == 413


def test_without_gradio_the_command_says_what_to_install(pipeline_folder):
    code = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'gradio' else find(name, *more)\n"
        f"sys.argv = ['app.py', '--pipeline', {str(pipeline_folder)!r}]\n"
        f"runpy.run_path({str(app.__file__)!r}, run_name='__main__')"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr == "app.py: error: the page needs Gradio: pip install 'latent-prior[app]'\n"
