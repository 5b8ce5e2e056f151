"""The documents as a site: it builds without a warning, is complete and fetches nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import latent_prior
from latent_prior import cli
from latent_prior.__main__ import SCRIPTS
from latent_prior.stage1_autoencoders import MODELS
from latent_prior.stage1_autoencoders.options import TrainOptions
from tests.test_docs import options_of

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page of the site shows, loads and links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("next", "prev", "index", "search"):
            self.loaded.append(found["href"])
        self.loaded += [found[name] for name in ("src", "data", "poster") if name in found]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*words, "-d", folder / "doctrees", ROOT / "docs", folder / "html"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html")}
    assert len(found) > 20
    return found


def targets(page: Page, urls: list[str]) -> Iterator[tuple[Path, str]]:
    """File and heading of each address within the site."""
    for url in urls:
        parts = urlsplit(url)
        if not parts.scheme:
            path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            yield path, unquote(parts.fragment)


def test_a_page_loads_nothing_from_elsewhere(site, pages):
    for page in pages.values():
        assert not [url for url in page.loaded if urlsplit(url).netloc], page.path
    for sheet in site.rglob("*.css"):
        named = re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", sheet.read_text())
        assert not [url for found in named for url in found if urlsplit(url).netloc], sheet


def test_what_a_page_loads_and_links_to_is_there(pages):
    for page in pages.values():
        for path, _ in targets(page, page.loaded):
            assert path.is_file(), (page.path, path)
        for path, heading in targets(page, page.links):
            assert path.is_file(), (page.path, path)
            assert not heading or heading in pages[path].ids | {"top"}, (page.path, path, heading)


def test_every_page_is_reached_from_the_first(site, pages):
    reached: set[Path] = set()
    waiting = {site / "index.html"}
    while waiting:
        path = waiting.pop()
        reached.add(path)
        linked = {path for path, _ in targets(pages[path], pages[path].links)}
        waiting |= (linked & set(pages)) - reached
    assert reached == set(pages) - {site / "search.html"}  # which the form in the margin opens


def test_every_page_of_the_documents_is_in_the_site(site):
    for path in (ROOT / "docs").rglob("*.md"):
        assert (site / path.relative_to(ROOT / "docs").with_suffix(".html")).is_file()


def test_every_picture_of_the_documents_is_in_the_site(site):
    for path in (ROOT / "docs/images").glob("*"):
        assert (site / "_images" / path.name).is_file(), f"{path} is shown nowhere"


def test_every_public_name_is_in_the_reference(pages, site):
    page = pages[site / "reference/python.html"]
    assert {f"latent_prior.{name}" for name in latent_prior.__all__} <= page.ids


def test_every_flag_and_preset_is_in_the_reference(pages, site):
    """Of every script, and for every kind of model where there are several."""
    flags: set[str] = set()
    for path in SCRIPTS.values():
        options = options_of(path)
        flags |= {flag.name for flag in cli.flags(options) if not flag.name.endswith(".*")}
    for member in MODELS:
        flags |= {flag.name for flag in cli.flags(TrainOptions, {"model.type": member})}
    shown = "".join(pages[path].text for path in (site / "reference").glob("*.html"))
    written = set(re.findall(r"--([\w.]+)", shown))
    assert len(flags) > 150
    assert flags <= written, flags - written
    presets = {path.stem for path in ROOT.glob("**/configs/*.yaml")}
    assert presets <= pages[site / "reference/presets.html"].ids
