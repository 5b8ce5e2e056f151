import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from latent_prior.pipelines import Pipeline, app
from latent_prior.pipelines.page.shown import Shown
from tests.pipelines.page.conftest import free_port
from tests.pipelines.page.test_generation import asked

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


# In a process of its own: Gradio leaves event loops unclosed, about which Python warns.
BUILD = """
import json, sys, time
import gradio, httpx
from latent_prior import Pipeline
from latent_prior.pipelines.page import layout
from latent_prior.pipelines.page.layout import build, serve
from latent_prior.pipelines.page.shown import Shown
pages = {}
for folder in sys.argv[2:]:
    page = build(Shown(Pipeline.from_pretrained(folder), folder))
    blocks = page.blocks.values()
    tabs = [block.id for block in blocks if isinstance(block, gradio.Tab) and block.id]
    events = [(f.api_name, f.concurrency_id) for f in page.fns.values() if f.queue and f.fn]
    labels = [str(getattr(block, "label", "")) for block in blocks]
    pages[folder] = {"tabs": tabs, "labels": labels, "events": events}

# The last page, which has a prior, is visited.
layout.SESSIONS = 3
address = serve(page, host="127.0.0.1", port=int(sys.argv[1]), share=False, wait=False)
client = httpx.Client(base_url=address, timeout=600)
config = client.get("config").json()
event = next(each for each in config["dependencies"] if each["api_name"] == "generate")
values = {each["id"]: each["props"].get("value") for each in config["components"]}
body = {"data": [1, *(values[number] for number in event["inputs"][1:])], "fn_index": event["id"]}
held = []
for visitor in (0, 1, 2, 3, 3, 3, 3):
    session = {"session_hash": f"visitor{visitor}"}
    client.post("gradio_api/queue/join", json=body | session).raise_for_status()
    assert '"success":true' in client.get("gradio_api/queue/data", params=session).text
    queue, app = page._queue, page.app
    for _ in range(1000):  # the last message is sent before the event is forgotten
        if not queue.event_ids_to_events:
            break
        time.sleep(0.02)
    kept = [app.state_holder.session_data, app.iterators, page.pending_diff_streams]
    kept += [queue.event_analytics, queue.event_ids_to_events]
    kept += [app.state_holder[session["session_hash"]].blocks_config.blocks]
    held.append([len(each) for each in kept])
history = client.get("gradio_api/run-history/buckets").status_code
print(json.dumps(pages | {"held": held, "history": history}))
"""


@pytest.fixture(scope="module")
def built(pipes, tmp_path_factory):
    """Tabs, labels and events of a page for each kind of pipeline."""
    root = tmp_path_factory.mktemp("kinds")
    for kind, pipe in pipes.items():
        pipe.save_pretrained(root / kind)
    kinds = [*(kind for kind in pipes if kind != "codes"), "codes"]
    words = [sys.executable, "-c", BUILD, str(free_port()), *kinds]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", TABS)
def test_what_a_pipeline_cannot_do_has_no_tab(built, kind):
    assert built[kind]["tabs"] == TABS[kind]


@pytest.mark.parametrize("kind", LABELS)
def test_what_has_no_effect_has_no_control(built, kind):
    found = [
        name
        for name in ("Class", "Prompt", "Top-k", "Rounds")
        if any(label.startswith(name) for label in built[kind]["labels"])
    ]
    assert found == LABELS[kind]


def test_events_that_use_the_model_share_one_place_in_the_queue(built):
    events = dict(built["codes"]["events"])
    assert {"generate", "reconstruct", "interpolate", "complete"} <= set(events)
    assert set(events.values()) == {"model"}


def test_what_the_server_holds_does_not_grow_with_requests_or_visitors(built):
    assert built["held"][-1] == built["held"][3], built["held"]  # of the same visitor
    assert built["held"][-1][0] == 3  # the capacity for visitors


def test_the_server_keeps_no_history_of_what_visitors_do(built):
    assert built["history"] == 404


SETTINGS = ("7", 1.0, 0.0, 0, 1.0, "constant", "0 1")


def test_the_page_draws_what_the_command_draws(ask, by_heart):
    shown = Shown(Pipeline.from_pretrained(by_heart), str(by_heart))
    updates = ask("generate", 2, 5, *SETTINGS)
    *_, last = asked(shown, num_images=2, label="7").stream()
    sources = [str(update) for update in updates if "data:image/png" in str(update)]
    assert len(sources) > 4
    expected = [np.asarray(image) for image in last.images]
    whole = [update[1] for update in updates if isinstance(update[1], str)]
    assert whole
    assert len(expected) == 2


def test_errors_stand_in_the_page(ask):
    said = str(ask("generate", 1, -1, *SETTINGS))
    assert "seed must be at least 0, not -1" in said
    assert "Traceback" not in said
    refused = ask("generate", 17, 0, *SETTINGS)[-1]
    assert "17 is greater than maximum value 16" in refused["error"]
    unknown = ask("generate", 1, 0, "eleven", *SETTINGS[1:])[-1]
    assert "Traceback" not in str(unknown)


def test_only_what_a_visitor_uploaded_can_be_read(address, ask, by_heart):
    weights = next(by_heart.rglob("*.safetensors"))
    for path in ("/etc/passwd", str(weights), str(Path(app.__file__)), "/proc/self/environ"):
        answer = httpx.get(f"{address}gradio_api/file={path}", timeout=120)
        assert answer.status_code in (403, 404), path
        given = {"path": path, "meta": {"_type": "gradio.FileData"}}
        shown = ask("reconstruct", given)
        assert "data:image" not in str(shown)
        assert "cannot be read as an image" not in str(shown)  # it was not even opened
    files = {"files": ("large.png", b"0" * ((20 << 20) + 1))}
    refused = httpx.post(f"{address}gradio_api/upload", files=files, timeout=120)
    assert refused.status_code == 413


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
