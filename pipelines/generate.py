r"""Generate images into a folder.

accelerate launch pipelines/generate.py --pipeline runs/mnist/pipeline --num_images 1000 \
    --output_dir runs/mnist/samples
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.pipelines.options import GenerateOptions

answer_early(__name__, GenerateOptions)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from latent_prior.calls import takes_options
from latent_prior.closing import say_next, score_flags
from latent_prior.data.images import to_uint8
from latent_prior.data.listing import GENERATION_FILE
from latent_prior.machine import is_main_process
from latent_prior.pipelines.image_folder import (
    GeneratedImages,
    chosen_classes,
    fill_folder,
    generation_settings,
    sample_images,
)
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.pipelines.prompts import prompts_in
from latent_prior.processes import start_processes
from latent_prior.records import check_output_dir
from latent_prior.seeds import generator


@takes_options(GenerateOptions)
def generate(options: GenerateOptions) -> GeneratedImages:
    """Generate images into a folder, those that are missing there.

    Returns:
        The images. `Pipeline` itself returns images without a folder.

    Raises:
        ValueError: the options, the pipeline or the output folder are wrong.
    """
    folder = Path(options.output_dir)
    check_output_dir(folder, GENERATION_FILE, {}, "images")
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
    prompts = chosen_prompts(pipe, options)
    # Random codes belong to no class.
    chosen, names = ([], ()) if options.random_codes else (options.labels, pipe.class_names)
    labels = chosen_classes(chosen, names, pipe.trained_classes, options.num_images)
    sampler = chosen_settings(pipe, options)
    settings = generation_settings(pipe, sampler, options.seed) | {"labels": options.labels}
    if prompts:
        settings["prompts"] = list(dict.fromkeys(prompts))
    models = list(pipe.components.values())
    if options.random_codes:
        settings |= {"random_codes": True, "prior_fingerprint": None}
        models = [pipe.autoencoder]

    def sample(numbers: range) -> Tensor:
        if options.random_codes:
            generators = [generator(options.seed, "image", number) for number in numbers]
            return to_uint8(pipe.decode(pipe.random_codes(len(numbers), generators)).cpu())
        return sample_images(pipe, numbers, labels, sampler, options.seed, prompts)

    return fill_folder(
        folder,
        settings,
        sample,
        labels,
        class_names=names,
        models=models,
        batch_size=options.batch_size,
        accelerator=accelerator,
        prompts=prompts,
    )


def chosen_prompts(pipe: Pipeline, options: GenerateOptions) -> list[str | None]:
    """The prompt of each image, those that are given in turn; none without any.

    Raises:
        ValueError: the prior reads no captions, or one is empty or too long.
    """
    given = options.prompts
    if options.prompts_file is not None:
        given = prompts_in(Path(options.prompts_file))
    if options.labels and pipe.prompt_reader is not None:
        raise ValueError(
            "--labels: this pipeline's prior reads captions and no labels; use --prompts"
        )
    if options.labels and given:
        raise ValueError("--prompts: this pipeline's prior knows classes; use --labels alone")
    if not given:
        return []
    pipe.prompts_for(given, len(given))
    return [given[number % len(given)] for number in range(options.num_images)]


def chosen_settings(pipe: Pipeline, options: GenerateOptions) -> dict[str, Any]:
    """The sampler settings that have an effect, by name; the given ones must have one."""
    latents = pipe.code_spec.kind == "latents"
    if options.random_codes and latents:
        raise ValueError(
            f"--random_codes: --pipeline {options.pipeline} has latents; without a prior they are "
            "sampled from N(0, I)"
        )
    if pipe.prior is None and not options.random_codes and not latents:
        raise ValueError(
            f"--pipeline {options.pipeline} has no prior; assemble one with --prior, "
            "or use --random_codes"
        )
    sampler = pipe.resolve(options.settings(), "--").to_dict()
    return {} if options.random_codes else {name: sampler[name] for name in pipe.settings}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_config(GenerateOptions, argv)
    generated = generate(options=options)
    if is_main_process():
        pipeline, name = Path(options.pipeline), "two_stage"
        if options.random_codes:
            name = "random_codes"
        room, codes = "stage1_autoencoders", pipeline.with_name("codes")
        flags = score_flags(generated.folder, name, pipeline / "autoencoder", room, codes)
        say_next("evaluation/score.py", flags)


if __name__ == "__main__":
    run(main)
