"""What every member of the family must do: the same commands, the same interface."""

import json

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from datasets import load_from_disk
from safetensors import safe_open
from safetensors.torch import load_file

from latent_prior.data.batch_order import RATES
from latent_prior.data.codes import CodeSpec
from latent_prior.data.codes_dataset import open_codes
from latent_prior.data.images import open_images, to_float
from latent_prior.evaluation.likelihood_bound import STANDARD_NORMAL, Bound
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import MODELS, encode, load_autoencoder, model_class, train

GAUSSIAN = ("vae", "vaegan")
DISCRETE = tuple(name for name in MODELS if name not in GAUSSIAN)
# A critic with everything that has a state or draws random numbers.
BUSY_CRITIC = {
    "critic.network": "residual",
    "critic.spectral_norm": True,
    "critic.feature_matching": 1,
    "critic.lecam": 0.1,
    "critic.r1": 1,
    "critic.r1_every": 2,
    "critic.augment": ["color", "translation", "cutout"],
}


@pytest.fixture(scope="module")
def flags(images):
    """A run of milliseconds with everything random in it."""
    return {
        "dataset": images,
        "image_size": 16,
        "batch_size": 8,
        "max_steps": 12,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "random_crop": True,
        "crop_padding": 2,
        "random_flip": True,
        "validation_split": "train",
        "log_every": 3,
        "evaluate_every": 7,
        "checkpoint_every": 4,
    }


@pytest.fixture
def fit(call, flags, parts, tmp_path):
    """`fit(folder, member, ...)` trains a member into a folder and returns it."""

    def into(folder, member, **others):
        of_member = parts["family_flags"][member]
        call(train, output_dir=tmp_path / folder, **{**flags, **of_member, **others})
        return tmp_path / folder

    return into


@pytest.fixture(scope="module")
def trained(call, flags, parts, tmp_path_factory):
    """`trained(member)`: its run folder; every member is trained once."""
    runs = {}

    def run_of(member):
        if member not in runs:
            folder = tmp_path_factory.mktemp(member) / "run"
            settings = {**flags, **parts["family_flags"][member], "max_steps": 8}
            call(train, output_dir=folder, **settings)
            runs[member] = folder
        return runs[member]

    return run_of


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def pictures(count=6):
    random = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 16, 16, generator=random) * 2 - 1


@pytest.mark.parametrize("member", MODELS)
def test_a_run_leaves_the_model_and_its_figures(trained, member):
    run = trained(member)
    model = load_autoencoder(run / "model")
    assert type(model) is model_class(member)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["type"] == member
    beside = CodeSpec.from_dict(json.loads((run / "model/code_spec.json").read_text()))
    assert beside == model.code_spec
    assert beside.kind == ("latents" if member in GAUSSIAN else "codes")
    (figures,) = [line for line in metrics(run) if line["step"] == 7 and "epoch_mse" in line]
    expected = {"epoch_mse", "epoch_psnr", "validation_mse", "validation_psnr"}
    per_posterior = {"kl", "active_units", "kl_per_dimension"}
    per_level = {
        f"{name}_{level.name}".removesuffix("_codes")
        for level in model.levels
        for name in ("usage", "perplexity")
    }
    for prefix in ("epoch_", "validation_"):
        expected |= {prefix + name for name in (per_posterior if member in GAUSSIAN else per_level)}
    if member in GAUSSIAN:
        expected |= {"validation_elbo", "validation_bits_per_dim"}
    if member in ("vaegan", "vqgan"):
        health = ("critic_accuracy_real", "critic_accuracy_fake", "critic_gap")
        expected |= {f"epoch_{name}" for name in health}
    warnings = {"epoch_warning", "validation_warning", "epoch_critic_warning"}
    found = figures.keys() - {"step", "images_seen", "seconds"}
    assert expected <= found <= expected | warnings


@pytest.mark.parametrize("member", MODELS)
def test_decoding_what_was_encoded_is_the_reconstruction(trained, member):
    model = load_autoencoder(trained(member) / "model")
    with torch.no_grad():
        expected = model(pictures()).images
        assert torch.equal(model.decode(model.encode(pictures())), expected)
        assert torch.equal(model.decode_vectors(model.embed(pictures())), expected)
    assert Pipeline(model).reconstruct(pictures()).equal(expected.clamp(-1, 1))


@pytest.mark.parametrize("member", MODELS)
def test_codes_have_the_shapes_and_values_of_the_spec(parts, member):
    model = parts["autoencoder"](member)
    maps = model.encode(pictures())
    assert list(maps) == [level.name for level in model.code_spec.levels]
    for level in model.code_spec.levels:
        values = maps[level.name]
        assert values.shape == (6, *level.shape)
        if level.vocabulary is None:
            assert values.dtype == torch.float32
        else:
            assert values.dtype == torch.int64
            assert 0 <= values.min() < values.max() < level.vocabulary
    assert not any(values.requires_grad for values in maps.values())


@pytest.mark.parametrize("member", MODELS)
def test_between_the_vectors_of_two_images_lie_other_images(parts, member):
    model = parts["autoencoder"](member)
    vectors = model.embed(pictures(2))
    assert all(each.ndim == 4 and each.is_floating_point() for each in vectors.values())
    middle = {name: each.lerp(each.flip(0), 0.5)[:1] for name, each in vectors.items()}
    with torch.no_grad():
        between, ends = model.decode_vectors(middle), model.decode_vectors(vectors)
    assert between.shape == (1, 3, 16, 16)
    assert all((between - end).abs().mean() > 0.01 for end in ends)


@pytest.mark.parametrize("member", MODELS)
def test_an_image_does_not_depend_on_its_batch(parts, member):
    model = parts["autoencoder"](member).double()
    batch = pictures().double()
    together = model.encode(batch)
    with torch.no_grad():
        images = model.decode(together)
        for number, image in enumerate(batch):
            alone = model.encode(image[None])
            for name, values in alone.items():
                torch.testing.assert_close(values[0], together[name][number], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(model.decode(alone)[0], images[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("member", MODELS)
def test_a_half_precision_copy_decodes_nearly_the_same(parts, member, tmp_path):
    model = parts["autoencoder"](member)
    model.save_pretrained(tmp_path)
    half = model_class(member).from_pretrained(tmp_path, dtype=torch.bfloat16)
    codes = model.encode(pictures())
    with torch.no_grad():
        found, expected = half.decode(codes), model.decode(codes)
        assert half(pictures().bfloat16()).images.shape == expected.shape
    assert (found.float() - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize("member", MODELS)
def test_encoding_writes_what_the_model_says_of_each_image(call, images, trained, member, tmp_path):
    folder = trained(member) / "model"
    call(encode, autoencoder=folder, dataset=images, output_dir=tmp_path / "codes", batch_size=16)
    splits, spec = open_codes(tmp_path / "codes")
    model = load_autoencoder(folder)
    whole = open_images(ImageOptions(dataset=str(images), image_size=16, channels=3), "train")
    for row in range(0, 40, 13):
        expected = model.encode(to_float(whole.read([row])))
        for name, values in expected.items():
            stored = splits["train"].column(name)[row]
            assert np.allclose(stored, values[0].numpy(), rtol=1e-3, atol=1e-3)
    assert spec.levels == model.levels
    assert spec.autoencoder_fingerprint == model.fingerprint
    assert (spec.latent_shift is not None) == (member in GAUSSIAN)


@pytest.mark.parametrize("member", MODELS)
def test_autocast_trains_nearly_the_same(fit, member):
    others = {"model.quantizer": "fsq"} if member in DISCRETE else {}
    if member in ("vaegan", "vqgan"):
        others |= {"critic.adaptive": True, "critic.lecam": 0.1, "critic.r1": 1}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        low = fit("low", member, **others, mixed_precision="bf16", max_steps=3)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    full = fit("full", member, **others, max_steps=3)
    one, two = (next(line for line in metrics(run) if "total" in line) for run in (low, full))
    assert one.keys() == two.keys()
    assert one["total"] == pytest.approx(two["total"], rel=0.05, abs=0.05)
    assert one["reconstruction"] == pytest.approx(two["reconstruction"], rel=0.05)
    weights = [load_file(run / "model/model.safetensors") for run in (low, full)]
    assert {w.dtype for w in weights[0].values()} == {w.dtype for w in weights[1].values()}


def test_another_member_in_the_folder_is_another_run(fit, refused, flags, parts, tmp_path):
    run = fit("run", "vae", max_steps=2)
    for member, culprit in (("vaegan", "model.type = 'vae'"), ("vae", "model.latent_dim = 6")):
        settings = {**flags, **parts["family_flags"][member], "model.latent_dim": 7}
        said = refused(train, output_dir=run, **settings)
        assert f"holds a run with {culprit}, this command sets" in said


# Several processes, micro-batches, and stopped runs


@pytest.mark.parametrize("member", ["vqvae2", "vaegan", "vqgan"])
def test_one_batch_of_8_equals_two_of_4(fit, member):
    """With a quantizer that has no memory: moving averages move once for every micro-batch."""
    others = {"max_steps": 6, "checkpoint_every": 6}
    others |= {} if member == "vaegan" else {"model.quantizer": "fsq"}
    if member != "vqvae2":
        others |= {"critic.r1": 1, "critic.r1_every": 2, "critic.start_step": 2}
        others |= {"critic.augment": BUSY_CRITIC["critic.augment"]}
    whole = fit("whole", member, **others)
    halves = fit("halves", member, accumulation_steps=2, **others)
    for part in ("model",) if member == "vqvae2" else ("model", "critic"):
        one, two = (
            torch.load(run / f"checkpoints/step-000000006/{part}.pt", weights_only=True)
            for run in (whole, halves)
        )
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)
    first, second = metrics(whole)[-2:], metrics(halves)[-2:]
    for one, two in zip(first, second, strict=True):
        for name in one.keys() - {"seconds", *RATES, "epoch_critic_warning", "epoch_warning"}:
            assert one[name] == pytest.approx(two[name], rel=1e-2, abs=1e-3), name


RESUMED = {
    "vae": {
        "model.kl_schedule": "cyclical",
        "model.kl_warmup_steps": 10,
        "model.kl_cycles": 2,
        "model.free_bits": 0.1,
        "model.capacity": 5,
        "model.autoregressive_layers": 1,
    },
    "vqvae2": {"model.quantizer": "residual", "model.residual_stages": 2, "model.num_levels": 3},
    "vaegan": BUSY_CRITIC,
    "vqgan": {"critic.adaptive": True, "critic.start_step": 6, "critic.loss": "relativistic"},
}


def differing(one, two):
    """Names of the tensors in which two checkpoints differ, and of the parts that only one has."""

    def flat(value, name=""):
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                yield from flat(inner, f"{name}/{key}")
        else:
            yield name, value

    parts = [{path.name for path in folder.glob("*.pt")} for folder in (one, two)]
    different = parts[0] ^ parts[1]
    for part in parts[0] & parts[1] - {"state.pt"}:
        found = [dict(flat(torch.load(f / part, weights_only=True), part)) for f in (one, two)]
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            same = torch.equal(value, found[1][name]) if torch.is_tensor(value) else value == found[1][name]  # fmt: skip
            different |= set() if same else {name}
    return different


@pytest.mark.parametrize("member", RESUMED)
def test_stopping_and_going_on_gives_the_same_bits(fit, member):
    """All that a checkpoint holds, a step after an evaluation and at the end."""
    whole = fit("whole", member, **RESUMED[member])
    fit("parts", member, **RESUMED[member], max_steps=4)
    fit("parts", member, **RESUMED[member], max_steps=7)
    parts = fit("parts", member, **RESUMED[member])
    held = {path.stem for path in (whole / "checkpoints/step-000000008").glob("*.pt")}
    critic = {"critic", "critic_optimizer", "lecam", "critic_health"}
    assert held & critic == (critic if member in ("vaegan", "vqgan") else set())
    for step in ("step-000000008", "step-000000012"):
        assert differing(whole / "checkpoints" / step, parts / "checkpoints" / step) == set()
    model = "model/model.safetensors"
    assert (whole / model).read_bytes() == (parts / model).read_bytes()
    ends = [{**metrics(run)[-1], "seconds": 0} for run in (whole, parts)]
    assert "epoch_mse" in ends[0]
    assert ends[0] == ends[1]


def test_killed_again_and_again_it_ends_in_the_same_weights(
    fit, killed_until_done, flags, parts, tmp_path
):
    settings = {**parts["family_flags"]["vaegan"], **BUSY_CRITIC}
    often = {"max_steps": 30, "checkpoint_every": 2}
    whole = fit("whole", "vaegan", **BUSY_CRITIC, **often)
    killed = tmp_path / "killed"
    kills = killed_until_done(train, output_dir=killed, **{**flags, **settings, **often})
    assert kills >= 3
    last = "checkpoints/step-000000030"
    assert differing(whole / last, killed / last) == set()
    steps = [[line["step"] for line in metrics(run)] for run in (whole, killed)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("member", ["vaegan", "vqgan"])
def test_the_critic_is_no_part_of_the_model(trained, member):
    peer = {"vaegan": "vae", "vqgan": "vqvae"}[member]
    names = []
    for name in (member, peer):
        with safe_open(trained(name) / "model/model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
    config = json.loads((trained(member) / "model/config.json").read_text())
    assert not [key for key in config if "critic" in key]


# A sixth member: this file, a line in the registry and a preset.

TOY = '''
"""Every patch of an image becomes one bit."""

from dataclasses import dataclass

import torch
from torch import nn

from latent_prior.data.codes import Level
from latent_prior.stage1_autoencoders.autoencoder import (
    Autoencoder, AutoencoderConfig, DiscreteOutput, quantized_objective
)
from latent_prior.stage1_autoencoders.options import ModelOptions
from latent_prior.stage1_autoencoders.quantizers.base import straight_through


@dataclass(kw_only=True)
class ToyOptions(ModelOptions):
    """Shape of a toy."""

    patch: int = 8
    """Side of a patch, in pixels."""

    adversarial = True

    def check_image_size(self, image_size):
        if image_size % self.patch:
            raise ValueError(f"--image_size {image_size} is no multiple of --model.patch {self.patch}")


class ToyConfig(AutoencoderConfig, ToyOptions):
    """The options of a toy and the images it is made for."""

    model_type = "latent_prior_toy"


class Toy(Autoencoder):
    """Two convolutions."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Conv2d(config.image_channels, 1, config.patch, stride=config.patch)
        self.decoder = nn.ConvTranspose2d(1, config.image_channels, config.patch, stride=config.patch)
        self.post_init()

    def forward(self, images):
        self.check_images(images)
        vectors = self.encoder(images).tanh()
        bits = straight_through(vectors.sign(), vectors)
        return DiscreteOutput(self.decoder(bits), {"bits": (vectors[:, 0] > 0).long()}, vectors.new_zeros(()))

    def objective(self, images, output, step):
        return quantized_objective(images, output, "l2")

    @torch.no_grad()
    def encode(self, images):
        return {"bits": (self.encoder(images)[:, 0] > 0).long()}

    def decode(self, codes):
        return self.decoder(2 * codes["bits"][:, None].float() - 1)

    def embed(self, images):
        return {"bits": 2 * self.encode(images)["bits"][:, None].float() - 1}

    def decode_vectors(self, vectors):
        return self.decoder(vectors["bits"])

    @property
    def levels(self):
        side = self.config.image_size // self.config.patch
        return (Level("bits", side, side, vocabulary=2),)

    @property
    def last_layer(self):
        return self.decoder.weight
'''


def test_a_sixth_member_is_a_file_a_line_and_a_preset(
    call, refused, images, flags, tmp_path, monkeypatch, capfd
):
    (tmp_path / "toy_member.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "toy", ("toy_member", "Toy"))
    (tmp_path / "toy.yaml").write_text(
        "model: {type: toy, patch: 4}\ncritic: {width: 4, layers: 2, adaptive: true}\n"
    )
    call(train, config=tmp_path / "toy.yaml", output_dir=tmp_path / "run", **flags)
    assert (tmp_path / "run/samples/step-000000012.png").is_file()
    assert metrics(tmp_path / "run")[-1]["validation_usage"] > 0
    call(encode, autoencoder=tmp_path / "run/model", dataset=images, output_dir=tmp_path / "codes")
    rows = load_from_disk(str(tmp_path / "codes"))["train"]
    assert rows.features["bits"].shape == (4, 4)
    model = load_autoencoder(tmp_path / "run/model")
    assert type(model).__name__ == "Toy"
    assert Pipeline(model).reconstruct(pictures()).shape == (6, 3, 16, 16)
    with pytest.raises(SystemExit):
        call(train, **{"model.type": "toy", "help": True})
    assert (
        "--model.patch int\n        Side of a patch, in pixels. (default: 8)"
        in capfd.readouterr().out
    )
    wrong = {"model.type": "toy", "model.patch": 5, "output_dir": tmp_path / "other"}
    assert "--model.patch 5" in refused(train, **{**flags, **wrong})


# A seventh with latents, which is no VAE.

LATENT_TOY = '''
"""Every patch of an image becomes one normally distributed number."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_prior.data.codes import Level
from latent_prior.losses.likelihoods import LaplaceLikelihood
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from latent_prior.stage1_autoencoders.gaussian import Gaussian
from latent_prior.stage1_autoencoders.options import ModelOptions


@dataclass(kw_only=True)
class LatentToyOptions(ModelOptions):
    """Nothing to choose."""

    def check_image_size(self, image_size):
        assert image_size % 4 == 0


class LatentToyConfig(AutoencoderConfig, LatentToyOptions):
    """The options of a toy and the images it is made for."""

    model_type = "latent_prior_latent_toy"


@dataclass
class Output:
    """What the objective and the meters read."""

    images: Tensor
    posterior: Gaussian


class LatentToy(Autoencoder):
    """Two convolutions."""

    config_class = LatentToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Conv2d(config.image_channels, 2, 4, stride=4)
        self.decoder = nn.ConvTranspose2d(1, config.image_channels, 4, stride=4)
        self.likelihood = LaplaceLikelihood(config.image_channels, scale=None)
        self.post_init()

    def posterior(self, images):
        self.check_images(images)
        return Gaussian(*self.encoder(images).chunk(2, dim=1))

    def nll(self, images, latents):
        return self.likelihood.nll(images, self.decoder(latents))

    def forward(self, images):
        posterior = self.posterior(images)
        latents = posterior.sample() if self.training else posterior.mean
        return Output(self.decoder(latents), posterior)

    def objective(self, images, output, step):
        nll = self.likelihood.nll(images, output.images).mean() / images[0].numel()
        kl = output.posterior.kl().sum((1, 2, 3)).mean() / images[0].numel()
        return {"reconstruction": nll, "total": nll + kl}

    @torch.no_grad()
    def encode(self, images):
        return {"numbers": self.posterior(images).mean}

    def decode(self, codes):
        return self.decoder(codes["numbers"])

    embed, decode_vectors = encode, decode

    @property
    def levels(self):
        side = self.config.image_size // 4
        return (Level("numbers", side, side, channels=1),)

    @property
    def last_layer(self):
        return self.decoder.weight
'''


def test_a_member_with_latents_need_not_be_a_vae(call, images, flags, tmp_path, monkeypatch):
    """It is trained, validated, encoded by samples and bounded as a VAE is."""
    (tmp_path / "latent_toy_member.py").write_text(LATENT_TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "latent_toy", ("latent_toy_member", "LatentToy"))
    call(train, output_dir=tmp_path / "run", **{"model.type": "latent_toy"}, **flags)
    last = metrics(tmp_path / "run")[-1]
    assert last["validation_active_units"] >= 0
    nats, dims = -last["validation_elbo"], 3 * 16 * 16
    bits = nats / (dims * np.log(2)) + np.log2(255 / 2)
    assert last["validation_bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    model = load_autoencoder(tmp_path / "run/model")
    rows = {}
    for posterior in ("mean", "sample"):
        folder = tmp_path / posterior
        call(encode, autoencoder=tmp_path / "run/model", dataset=images, output_dir=folder, posterior=posterior)  # fmt: skip
        rows[posterior] = np.array(load_from_disk(str(folder))["train"]["numbers"])
        assert open_codes(folder)[1].latent_shift is not None
    assert rows["mean"].shape == rows["sample"].shape == (40, 1, 4, 4)
    assert not np.allclose(rows["mean"], rows["sample"], atol=1e-2)
    bound = Bound(Pipeline(model))
    assert bound.priors == (STANDARD_NORMAL,)
    noise = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    nats = bound(pictures(), torch.full((6,), -1), noise)
    latents = model.posterior(pictures()).from_noise(noise)
    with torch.no_grad():
        torch.testing.assert_close(nats.pixels, model.nll(pictures(), latents))
