r"""Serve a page to generate, reconstruct and edit images with a pipeline.

python pipelines/app.py --pipeline runs/mnist/pipeline
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.pipelines.options import AppOptions

answer_early(__name__, AppOptions)

import importlib.util
import sys
from collections.abc import Sequence

from latent_prior.cli import CONSOLE
from latent_prior.pipelines.pipeline import Pipeline


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: the options or a pipeline are wrong, or Gradio is missing.
    """
    options = parse_config(AppOptions, argv)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'latent-prior[app]'")
    from latent_prior.pipelines.page.comparison import of_pipeline, open_folder
    from latent_prior.pipelines.page.layout import build, serve
    from latent_prior.pipelines.page.shown import Shown

    console = sys.argv[0].startswith(f"{CONSOLE} ")
    generate = f"{CONSOLE} generate" if console else "python pipelines/generate.py"
    shown = Shown(Pipeline.from_pretrained(options.pipeline), options.pipeline, generate)
    opponents = [open_folder(given, shown.pipe.code_spec) for given in options.images]
    if options.second is not None:
        second = Shown(Pipeline.from_pretrained(options.second), options.second)
        opponents.append(of_pipeline(second))
    if opponents and not shown.draws:
        raise ValueError(f"--pipeline {options.pipeline} has no prior: there is nothing to compare")
    serve(build(shown, opponents), host=options.host, port=options.port, share=options.share)


if __name__ == "__main__":
    run(main)
