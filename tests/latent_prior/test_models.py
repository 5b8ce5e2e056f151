import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latent_prior.manifests import MANIFEST, write_manifest
from latent_prior.models import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    StrictModel,
    fingerprint,
    local_folder,
)


@dataclass(kw_only=True)
class Options:
    width: int = 4
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    spread: float = 1.0

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"--width must be at least 1, not {self.width}")


class Config(ModelConfig, Options):
    model_type = "test_strict"


class Model(StrictModel):
    """A convolution, a codebook in a buffer, a counter and a flag."""

    config_class = Config
    config: Config

    def __init__(self, config):
        super().__init__(config)
        self.convolution = nn.Conv2d(1, config.width, 3)
        self.head = nn.Linear(config.width, 2)
        self.register_buffer("codebook", torch.randn(5, config.width))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("started", torch.tensor(True))
        self.post_init()


class OtherConfig(ModelConfig, Options):
    model_type = "test_other"


class Other(Model):
    config_class = OtherConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(Config(width=3, sizes=[4, 5, 6], spread=0.25))


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **values: object) -> None:
    """Change keys of a config, and its record in the manifest; ... removes one."""
    merged = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in merged.items() if v is not ...}))
    write_manifest(path.parent, "model")


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def test_a_model_survives_the_disk(model, saved, capfd):
    loaded = Model.from_pretrained(saved)
    assert equal(model, loaded)
    assert (loaded.config.width, loaded.config.sizes, loaded.config.spread) == (3, [4, 5, 6], 0.25)
    assert loaded.fingerprint == model.fingerprint == fingerprint(model.state_dict().items())
    assert not loaded.training
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_FILE, MANIFEST, WEIGHTS_FILE]
    loaded.save_pretrained(saved.parent / "again")
    assert equal(Model.from_pretrained(saved.parent / "again"), model)
    assert capfd.readouterr() == ("", "")  # neither bars nor reports


def test_what_the_weights_have_cost_travels_with_them(model, tmp_path):
    budget = {
        "steps": 2,
        "images_seen": 64,
        "seconds": 0.5,
        "cpu_seconds": 0.9,
        "device": "cpu",
        "num_processes": 1,
    }
    model.config.training = budget
    model.save_pretrained(tmp_path / "first")
    loaded = Model.from_pretrained(tmp_path / "first")
    assert loaded.config.training == budget
    loaded.save_pretrained(tmp_path / "second")
    assert Model.from_pretrained(tmp_path / "second").config.training == budget
    change(tmp_path / "second" / CONFIG_FILE, training=...)  # as models were saved before
    assert Model.from_pretrained(tmp_path / "second").config.training is None


def test_a_model_survives_in_several_files(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size=100)
    assert (tmp_path / INDEX_FILE).is_file()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert equal(Model.from_pretrained(tmp_path), model)
    shard = next(tmp_path.glob("*.safetensors"))
    save_file(
        {k: v + 1 if v.is_floating_point() else v for k, v in load_file(shard).items()}, shard
    )
    with pytest.raises(ValueError, match=f"{shard.name} is damaged or was exchanged"):
        Model.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        Model.from_pretrained(tmp_path)


def test_other_weights_can_be_saved_under_the_models_names(model, tmp_path):
    averaged = {k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=averaged)
    loaded = Model.from_pretrained(tmp_path)
    assert torch.equal(loaded.head.weight, model.head.weight * 2)
    assert loaded.fingerprint == fingerprint(averaged.items())


def test_channels_last_weights_are_saved_like_any(model, tmp_path):
    wanted = fingerprint(model.state_dict().items())
    nn.Module.to(model, memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).fingerprint == wanted


def test_what_init_set_stays(model):
    """transformers' own initialisation, N(0, 0.02) on every layer, would flatten convolutions."""
    torch.manual_seed(0)
    plain = nn.Conv2d(1, 3, 3)
    assert torch.equal(model.convolution.weight, plain.weight)
    assert model.convolution.weight.std() > 0.1


def test_weights_take_the_type_asked_for(saved):
    assert Model.from_pretrained(saved).head.weight.dtype == torch.float32
    half = Model.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.head.weight.dtype == torch.bfloat16
    assert half.steps.dtype == torch.int64


def test_a_fingerprint_depends_on_everything_but_the_order():
    base = {"a": torch.arange(6.0), "b": torch.zeros(2, dtype=torch.bool), "c": torch.tensor(3)}
    reference = fingerprint(base.items())
    assert fingerprint(reversed(base.items())) == reference
    assert (
        fingerprint(
            {**base, "a": torch.arange(6.0).reshape(2, 3).t().contiguous().t().reshape(-1)}.items()
        )
        == reference
    )
    for other in (
        {**base, "a": base["a"] + 1e-6},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].double()},
        {**base, "b": torch.zeros(2, dtype=torch.uint8)},
        {"x": base["a"], "b": base["b"], "c": base["c"]},
        {k: v for k, v in base.items() if k != "b"},
    ):
        assert fingerprint(other.items()) != reference


def write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Replace weights together with their fingerprint, so that only names and shapes are wrong."""
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    change(folder / CONFIG_FILE, weights_sha256=fingerprint(weights.items()))


def test_missing_weights_are_told(model, saved):
    write_weights(saved, {k: v for k, v in model.state_dict().items() if k != "codebook"})
    with pytest.raises(ValueError, match="missing keys: codebook"):
        Model.from_pretrained(saved)


def test_unexpected_weights_are_told(model, saved):
    write_weights(saved, {**model.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="unexpected keys: extra"):
        Model.from_pretrained(saved)


def test_weights_of_another_shape_are_told_in_one_line(saved, capfd):
    change(saved / CONFIG_FILE, width=8)
    with pytest.raises(
        ValueError, match=r"mismatched keys: .*codebook.*\[5, 3\].*\[5, 8\]"
    ) as told:
        Model.from_pretrained(saved)
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_an_adapter_beside_the_weights_is_refused(saved):
    """transformers would load it on top, without a check, where its package is installed."""
    (saved / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    with pytest.raises(ValueError, match=r"adapter_config.json: adapters .* remove the file"):
        Model.from_pretrained(saved)


def test_exchanged_weights_are_told(saved, tmp_path):
    torch.manual_seed(1)
    Model(Config(width=3)).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / WEIGHTS_FILE).replace(saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was exchanged"):
        Model.from_pretrained(saved)
    (saved / MANIFEST).unlink()  # as models were saved before manifests
    with pytest.raises(ValueError, match=r"config\.json expects .*exchanged; restore the folder"):
        Model.from_pretrained(saved)


def test_weights_beside_the_recorded_ones_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size=100)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / WEIGHTS_FILE).replace(tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"model\.safetensors was added"):
        Model.from_pretrained(tmp_path)


def test_every_bit_of_a_config_counts(saved):
    content = (saved / CONFIG_FILE).read_bytes()
    for bit in range(0, 8 * len(content), 5):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (saved / CONFIG_FILE).write_bytes(flipped)
        with pytest.raises(ValueError, match=r"config\.json|holds a model of type"):
            Model.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_told(saved, keep):
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Model.from_pretrained(saved)


def test_missing_files_are_told(saved):
    (saved / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        Model.from_pretrained(saved)
    (saved / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        Model.from_pretrained(saved)
    (saved / CONFIG_FILE).unlink()
    with pytest.raises(
        ValueError, match=r"config\.json is missing; the folder holds: manifest.json, pytorch_model"
    ):
        Model.from_pretrained(saved)


def test_a_foreign_model_is_told(saved):
    with pytest.raises(ValueError, match="type 'test_strict', expected 'test_other'"):
        Other.from_pretrained(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, "unknown key 'widht'; test_strict does not have it"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "unknown key 'auto_map'"),
        ({"width": ...}, "width is missing"),
        ({"spread": ...}, "spread is missing"),
        ({"weights_sha256": ...}, "weights_sha256 is missing"),
        ({"width": 0}, "--width must be at least 1, not 0"),
        ({"width": "wide"}, r"config\.json: width: Expected int, got str"),
        ({"model_type": ...}, r"config\.json: model_type is no name"),
    ],
)
def test_a_meddled_config_is_told(saved, values, message):
    change(saved / CONFIG_FILE, **values)
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(saved)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "nowhere", "~/x", "a/"])
def test_names_that_can_only_be_paths_never_ask_the_hub(name):
    with pytest.raises(ValueError, match=f"there is no folder {name}$"):
        local_folder(name)


def test_files_and_odd_names_are_told(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="is a file; expected the folder"):
        local_folder(tmp_path / "a.json")
    with pytest.raises(ValueError, match="there is no folder"):
        local_folder("some body/some thing")
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        local_folder("some/thing")  # the tests run with HF_HUB_OFFLINE=1
    assert local_folder(tmp_path) == tmp_path


def test_a_config_checks_its_options():
    with pytest.raises(ValueError, match="--width"):
        Config(width=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("name", ["convolution.weight", "codebook"])
def test_weights_that_are_no_numbers_of_a_model_are_named(tmp_path, name, value):
    model = Model(Config(width=3))
    model.state_dict()[name].view(-1)[2] = value
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"model: weight {name} holds numbers that are not finite"):
        Model.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": True}, "width: Expected int, got bool"),
        ({"width": 3.5}, "width: Expected int, got float"),
        ({"width": [3]}, "width: Expected int, got array"),
        ({"width": 10**9}, r"width = 1e\+09 is beyond 16,777,216"),
        ({"width": 10**30}, r"width = 1e\+30 is beyond"),
        ({"width": 2**24}, "weights have .* bytes"),
        ({"weights_sha256": 5}, "weights_sha256: Expected str"),
        ({"training": {"steps": 1}}, "training: Object missing required field"),
        ({"training": 5}, "training: Expected object"),
        ({"architectures": ["os.system"]}, "architectures must be Model"),
        ({"dtype": "evil"}, "dtype: Invalid enum value"),
        ({"problem_type": "x"}, "unknown key 'problem_type'"),
    ],
)
def test_a_config_of_wrong_types_or_sizes_fills_no_memory(saved, values, message):
    (saved / MANIFEST).unlink()
    content = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(content | values))
    with pytest.raises(ValueError, match=message) as refused:
        Model.from_pretrained(saved)
    assert str(saved / CONFIG_FILE) in str(refused.value)


@pytest.mark.parametrize(
    "index",
    [
        "[", "[1]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../b.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": "b.bin"}}',
    ],
)  # fmt: skip
def test_a_damaged_index_of_weights_is_named(saved, index):
    (saved / MANIFEST).unlink()
    (saved / WEIGHTS_FILE).unlink()
    (saved / INDEX_FILE).write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        Model.from_pretrained(saved)
