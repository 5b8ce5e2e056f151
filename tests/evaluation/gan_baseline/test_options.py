import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latent_prior.cli import parse_config
from latent_prior.evaluation.gan_baseline.options import (
    CriticOptions,
    GenerateOptions,
    GeneratorOptions,
    TrainOptions,
)

ROOM = Path(__file__).parents[3] / "evaluation" / "gan_baseline"
PRESETS = sorted((ROOM / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_accepted(path):
    options = parse_config(TrainOptions, ["--config", str(path), "--output_dir", "x"])
    assert options.image_size is not None
    assert set(yaml.safe_load(path.read_text())) <= set(vars(options))


def test_numbers_are_checked():
    for culprit, make in {
        "--model.type": lambda: GeneratorOptions(type="biggan"),
        "--model.latent_dim": lambda: GeneratorOptions(latent_dim=0),
        "--model.width": lambda: GeneratorOptions(width=0),
        "--model.multipliers": lambda: GeneratorOptions(multipliers=[]),
        "--model.blocks": lambda: GeneratorOptions(multipliers=[1, 2], blocks=[1]),
        "--critic.width": lambda: CriticOptions(width=0),
        "--critic.steps": lambda: CriticOptions(steps=0),
        "--critic.penalty_every": lambda: CriticOptions(penalty_every=0),
        "--critic.learning_rate": lambda: CriticOptions(learning_rate=0.0),
        "--final_beta2": lambda: TrainOptions(output_dir="x", final_beta2=1.0),
        "--critic.final_gamma": lambda: CriticOptions(final_gamma=-1.0),
        "--critic.gamma": lambda: CriticOptions(gamma=-1.0),
        "--image_size 30": lambda: TrainOptions(output_dir="x", image_size=30),
        "--num_images": lambda: GenerateOptions(gan="x", output_dir="y", num_images=0),
        "--truncation": lambda: GenerateOptions(gan="x", output_dir="y", truncation=-0.1),
    }.items():
        with pytest.raises(ValueError, match=culprit):
            make()


def test_gamma_and_beta2_are_annealed_from_end_to_end():
    options = TrainOptions(
        output_dir="x", max_steps=100, beta2=0.9, final_beta2=0.99,
        critic=CriticOptions(gamma=2.0, final_gamma=0.2),
    )  # fmt: skip
    gammas = [options.gamma_at(step) for step in (0, 50, 100, 200)]
    assert gammas == pytest.approx([2.0, 1.1, 0.2, 0.2])
    assert all(a > b for a, b in itertools.pairwise(map(options.gamma_at, range(101))))
    betas = [options.beta2_at(step) for step in (0, 50, 100, 200)]
    assert betas == pytest.approx([0.9, 0.945, 0.99, 0.99])
    constant = TrainOptions(output_dir="x", beta2=0.95, critic=CriticOptions(gamma=3.0))
    assert {constant.gamma_at(step) for step in (0, 7, 10**6)} == {3.0}
    assert {constant.beta2_at(step) for step in (0, 7, 10**6)} == {0.95}


@pytest.mark.parametrize("script", ["train", "generate"])
def test_a_wrong_flag_is_answered_before_torch_is_imported(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); "
         f"sys.argv = ['{script}.py', '--learning_rat', '1']; "
         f"runpy.run_path({str(ROOM / script)!r} + '.py', run_name='__main__')"],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}.py: error: unknown option --learning_rat")
