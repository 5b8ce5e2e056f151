"""The page in a browser: Chromium of the system, on a desktop and on a phone."""

import base64
import io
import re
import shutil
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from latent_prior.data.images import to_float
from latent_prior.pipelines import Pipeline
from latent_prior.pipelines.page.layout import build, serve
from latent_prior.pipelines.page.shown import Shown
from tests.pipelines.page.conftest import free_port

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEWPORTS = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE = 120_000  # milliseconds; other programs may have the machine


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(params=VIEWPORTS)
def page(request, browser, address):
    """The page, whose console has no errors and which requests nothing from elsewhere."""
    width, height = VIEWPORTS[request.param]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    said, asked = [], []
    page.on("console", lambda message: said.append((message.type, message.text)))
    page.on("pageerror", lambda error: said.append(("error", str(error))))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    assert [each for each in said if each[0] == "error"] == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    page.close()


def pixels(images):
    """What the images on the page show, uint8 (H, W) or (H, W, 3)."""
    sources = [image.get_attribute("src") for image in images.all()]
    files = [base64.b64decode(source.partition("base64,")[2]) for source in sources]
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def classify(images, digits):
    """The class of the nearest training image."""
    known, labels = digits
    found = to_float(torch.from_numpy(np.stack(images))[:, None])
    blurred = [F.avg_pool2d(each, 3, 1, 1).flatten(1) for each in (found, known)]
    return labels[torch.cdist(*blurred).argmin(1)].tolist()


def fits(page):
    """Nothing sticks out to the right, and everything that takes the focus has a name."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nameless = page.evaluate("""() => [...document.querySelectorAll(
        'input, textarea, select, button, [tabindex="0"]')].filter(e => e.offsetParent &&
        !(e.ariaLabel || e.title || e.innerText || e.placeholder || e.labels?.[0]?.innerText ||
          e.getAttribute("aria-labelledby") || e.type === "file")).map(e => e.outerHTML)""")
    assert nameless == []


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def test_every_tab_does_what_it_says(page, digits, tmp_path):
    fits(page)
    press(page, "Draw")
    page.get_by_text("Drawn in").wait_for()
    fits(page)
    drawn = pixels(page.locator(".pictures:visible img"))
    assert classify(drawn, digits) == list(range(8))
    page.get_by_label("Class", exact=True).click()
    page.get_by_role("option", name="7", exact=True).click()
    press(page, "New seed")
    page.locator("figcaption:visible", has_text=re.compile(r"^\s*7\s*$")).nth(7).wait_for()
    page.get_by_text("Drawn in").wait_for()
    drawn = pixels(page.locator(".pictures:visible img"))
    assert classify(drawn, digits) == [7] * 8

    page.get_by_label("Seed", exact=True).fill("-1")
    press(page, "Draw")
    page.get_by_role("alert").get_by_text("seed must be at least 0, not -1").wait_for()

    tab(page, "reconstruct")
    (tmp_path / "song.png").write_text("la la la")
    upload(page, tmp_path / "song.png")
    page.get_by_role("alert").get_by_text("the image cannot be read as an image").wait_for()
    press(page, "Take one that the pipeline draws")
    page.get_by_text("Click on a code").wait_for()
    original, reconstruction, codes = pixels(page.locator(".pictures:visible img"))
    assert classify([original], digits) == classify([reconstruction], digits)
    assert codes.shape == (7, 7, 3)
    page.locator(".codes").focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("stands at row 1, column 1").wait_for()
    assert page.locator(".codes svg rect.chosen").count() == 1
    page.locator(".codes").click()
    page.get_by_text("stands at row 3, column 3").wait_for()
    assert len(pixels(page.locator(".pictures.small img"))) == 8
    fits(page)

    tab(page, "latent")
    press(page, "Take two that the pipeline draws")
    page.locator(".upload:visible img").nth(1).wait_for()
    press(page, "Show the way")
    page.get_by_text("Both ends are reconstructions").wait_for()
    assert len(pixels(page.locator(".pictures:visible img"))) == 7
    tab(page, "attribute")
    page.get_by_label("number input for Strength").fill("2")
    page.keyboard.press("Tab")
    page.get_by_text("The direction is the difference").wait_for()
    fits(page)

    tab(page, "complete")
    press(page, "Take one that the pipeline draws")
    canvas = page.locator(".mask canvas")
    canvas.wait_for()
    press(page, "Complete")
    page.get_by_role("alert").get_by_text("nothing is hidden: paint over").wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    page.mouse.up()
    press(page, "Complete")
    page.get_by_text("of the image.").wait_for()
    given, *completed = pixels(page.locator(".shown:visible .pictures img"))
    assert len(completed) == 4
    changed = (given != completed[0]).mean()
    assert 0 < changed < 0.4
    fits(page)

    tab(page, "compare")
    press(page, "Show two images")
    page.get_by_text("Which one is real?").wait_for()
    assert len(pixels(page.locator(".pictures:visible img"))) == 2
    press(page, "Left")
    page.get_by_text(re.compile(r"You found the real one in \d of 1 \(.*95% interval")).wait_for()
    fits(page)


def upload(page, path):
    page.locator("input[type=file]:visible, .upload:visible input[type=file]").first.set_input_files(path)  # fmt: skip


def test_images_appear_while_they_are_drawn_and_stop(page):
    """The first picture on the page is one that is mostly grey."""
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => {
          const image = document.querySelector(".pictures img");
          if (image && window.seen.at(-1) !== image.src) window.seen.push(image.src);
        }).observe(document.body, {subtree: true, childList: true, attributes: true});
    }""")
    press(page, "Draw")
    page.get_by_text("Drawn in").wait_for()
    seen = page.evaluate("window.seen")
    shares = []
    for source in seen:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        shares.append(float((picture == 128).mean()))
    assert len(shares) >= 3
    assert shares[0] > 0.5
    assert shares[-1] < 0.1
    press(page, "Stop")
    page.get_by_text("Stopped.").wait_for()


@pytest.fixture
def gated(pipes, monkeypatch):
    """A page of this process, which draws on only when the gate is open, and its address."""
    gate, stream = threading.Event(), Pipeline.stream

    def waiting(*values, **settings):
        for output in stream(*values, **settings):
            yield output
            gate.wait(PATIENCE / 1000)

    monkeypatch.setattr(Pipeline, "stream", waiting)
    page = build(Shown(pipes["codes"], "runs/codes/pipeline"))
    yield gate, serve(page, host="127.0.0.1", port=free_port(), share=False, wait=False)
    gate.set()
    page.close()


def test_a_drawing_that_is_stopped_stays_as_it_is_and_makes_room_for_the_next(browser, gated):
    gate, address = gated
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    press(page, "Draw")
    page.get_by_text("Drawing ...").wait_for()
    page.locator(".pictures img").first.wait_for()
    press(page, "Stop")
    page.get_by_text("Stopped.").wait_for()
    grey = [float((each == 128).mean()) for each in pixels(page.locator(".pictures img"))]
    gate.set()
    page.wait_for_timeout(1000)
    assert page.get_by_text("Stopped.").is_visible()
    after = [float((each == 128).mean()) for each in pixels(page.locator(".pictures img"))]
    assert after == grey
    assert min(grey) > 0.5
    press(page, "Draw")
    page.get_by_text("Drawn in").wait_for()
    after = [float((each == 128).mean()) for each in pixels(page.locator(".pictures img"))]
    assert max(after) < 0.1
    page.close()
