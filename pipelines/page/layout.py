"""The page as a whole: its tabs, and how it is served."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gradio
from gradio.themes import Base

from latent_prior.pipelines.page.comparison import Contestant, compare_with
from latent_prior.pipelines.page.completing import completion_tab
from latent_prior.pipelines.page.generation import generation_tab
from latent_prior.pipelines.page.latent_space import latent_tab
from latent_prior.pipelines.page.pictures import text
from latent_prior.pipelines.page.reconstruction import reconstruction_tab
from latent_prior.pipelines.page.shown import Shown
from latent_prior.pipelines.page.uploads import LARGEST

WAITING = 64
"""Visitors who may wait for their turn; the next one reads that the page is busy."""
KEEP_SECONDS = 600
"""Uploaded files are deleted when they are older."""
SESSIONS = 256
"""Visitors whose page Gradio remembers, 0.14 MB and the last images each; by default 10,000."""
STYLE = Path(__file__).with_name("page.css")


def build(shown: Shown, opponents: Sequence[Contestant] = ()) -> gradio.Blocks:
    """The page; what its pipeline cannot do has no tab.

    Args:
        shown: its pipeline.
        opponents: whose images are compared with the pipeline's.
    """
    codes = shown.pipe.code_spec.kind == "codes"
    with gradio.Blocks(
        title=f"{shown.name} · latent-prior",
        analytics_enabled=False,
        delete_cache=(60, KEEP_SECONDS),
    ) as page:
        gradio.HTML(
            f"<header><h1>{text(shown.name)}</h1><p>{text(shown.facts)}</p></header>",
            padding=False,
            js_on_load=None,
        )
        with gradio.Tabs(overflow_behavior="wrap"):
            if shown.draws:
                with gradio.Tab("generate", id="generate"):
                    generation_tab(shown)
            with gradio.Tab("reconstruct", id="reconstruct"):
                reconstruction_tab(shown)
            with gradio.Tab("latent", id="latent"):
                latent_tab(shown)
            if not codes or shown.pipe.prior is not None:
                with gradio.Tab("complete", id="complete"):
                    completion_tab(shown)
            if opponents and shown.draws:
                with gradio.Tab("compare", id="compare"):
                    compare_with(shown, opponents)
    return page


def serve(
    page: gradio.Blocks, *, host: str, port: int | None, share: bool, wait: bool = True
) -> str:
    """Serve the page until the process is stopped; returns its address if it does not wait.

    Nothing but the page's own files and what a visitor has uploaded can be read from it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio makes a table of so many last requests after every request, though nobody sees it here.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    _, local, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        allowed_paths=[],
        max_file_size=LARGEST,
        enable_monitoring=False,
        run_history=False,
        state_session_capacity=SESSIONS,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css_paths=STYLE,
    )
    print(f"page: {public or local}", flush=True)
    if wait:
        page.block_thread()
    return local


def _theme() -> Base:
    """Fonts of the visitor's system: others would be fetched from elsewhere."""
    return Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
