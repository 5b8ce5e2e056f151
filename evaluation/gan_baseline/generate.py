"""Generate images with a GAN into a folder, in the form of `pipelines/generate.py`.

accelerate launch evaluation/gan_baseline/generate.py --gan runs/gan/model --output_dir runs/samples
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.evaluation.gan_baseline.options import GenerateOptions

answer_early(__name__, GenerateOptions)

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from latent_prior.calls import takes_options
from latent_prior.closing import say_next, score_flags
from latent_prior.data.images import to_uint8
from latent_prior.data.listing import GENERATION_FILE
from latent_prior.evaluation.gan_baseline.gan import Generator
from latent_prior.machine import is_main_process
from latent_prior.pipelines.image_folder import GeneratedImages, chosen_classes, fill_folder
from latent_prior.processes import start_processes
from latent_prior.records import check_output_dir
from latent_prior.seeds import generator


@takes_options(GenerateOptions)
def generate_gan(options: GenerateOptions) -> GeneratedImages:
    """Generate images with a GAN into a folder, those that are missing there.

    Returns:
        The images, in a folder like that of `generate`.

    Raises:
        ValueError: the options, the generator or the output folder are wrong.
    """
    folder = Path(options.output_dir)
    check_output_dir(folder, GENERATION_FILE, {}, "images")
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    gan = Generator.from_pretrained(options.gan).to(accelerator.device)
    names = gan.config.class_names
    if options.labels and not names:
        raise ValueError(f"--labels: --gan {options.gan} has no classes; leave it out")
    labels = chosen_classes(options.labels, names, gan.config.trained_classes, options.num_images)
    settings = {
        "gan_fingerprint": gan.fingerprint,
        "truncation": options.truncation,
        "labels": options.labels,
        "seed": options.seed,
    }

    def sample(numbers: range) -> Tensor:
        generators = [generator(options.seed, "image", number) for number in numbers]
        images = gan.sample([labels[number] for number in numbers], generators, options.truncation)
        return to_uint8(images).cpu()

    return fill_folder(
        folder,
        settings,
        sample,
        labels,
        class_names=names,
        models=[gan],
        batch_size=options.batch_size,
        accelerator=accelerator,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_config(GenerateOptions, argv)
    generated = generate_gan(options=options)
    if is_main_process():
        room = "evaluation/gan_baseline"
        flags = score_flags(generated.folder, "gan", Path(options.gan), room)
        say_next("evaluation/score.py", flags)


if __name__ == "__main__":
    run(main)
