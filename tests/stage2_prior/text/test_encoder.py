import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, T5EncoderModel

from latent_prior.stage2_prior.text.encoder import TextEncoder
from latent_prior.stage2_prior.text.states import StateStore
from tests.text_encoders import ENCODERS

CAPTIONS = ["a red circle at the top left", "star", "", "a large blue square"]


@pytest.mark.parametrize("kind", ENCODERS)
def test_states_are_those_of_the_encoder_for_each_caption_alone(encoder_folder, kind):
    folder = encoder_folder(kind)
    encoder = TextEncoder(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (T5EncoderModel if kind == "t5" else AutoModel).from_pretrained(folder).eval()
    text = encoder.read(CAPTIONS)
    assert text.states.shape == (4, 8, 16)
    for row, caption in enumerate(CAPTIONS):
        if not caption:
            assert (text.tokens[row] == -1).all()
            continue
        numbers = tokenizer(caption, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(input_ids=numbers).last_hidden_state[0]
        assert expected.std() > 0.1
        count = len(expected)
        assert text.tokens[row].tolist() == [-1] * (8 - count) + [0] * count
        torch.testing.assert_close(text.states[row, -count:], expected, rtol=1e-5, atol=1e-5)


def test_every_distinct_caption_is_encoded_once_and_found_on_disk(encoder_folder, tmp_path):
    encoder, read = TextEncoder(str(encoder_folder())), []
    original = encoder.read
    encoder.read = lambda captions: read.extend(captions) or original(captions)
    captions = CAPTIONS[:2] * 3 + CAPTIONS[3:]
    assert StateStore.find(tmp_path, encoder.spec) is None
    StateStore.make(tmp_path / "states", encoder, captions)
    assert sorted(read) == sorted(set(captions))
    store = StateStore.find(tmp_path / "states", encoder.spec)
    found, expected = store.read(captions), original(captions)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-3, atol=1e-3)  # float16
    with pytest.raises(ValueError, match="has no states of 'never asked for'"):
        store.read(["never asked for"])


def test_runs_that_begin_together_encode_once(encoder_folder, tmp_path):
    encoder, read, folder = TextEncoder(str(encoder_folder())), [], tmp_path / "states"
    original, both = encoder.read, threading.Barrier(2)

    def slow(captions):
        read.extend(captions)
        time.sleep(0.2)  # the other one has come by then
        return original(captions)

    def make():
        both.wait()
        StateStore.make(folder, encoder, CAPTIONS)

    encoder.read = slow
    with ThreadPoolExecutor(2) as pool:
        for made in [pool.submit(make) for _ in range(2)]:
            made.result()
    assert sorted(read) == sorted(CAPTIONS)
    assert len([*folder.glob("*.arrow")]) == 1


def test_damaged_states_are_refused(encoder_folder, tmp_path):
    encoder = TextEncoder(str(encoder_folder()))
    StateStore.make(tmp_path, encoder, CAPTIONS)
    (path,) = tmp_path.glob("*.arrow")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged; delete it, and repeat the command"):
            StateStore.find(tmp_path, encoder.spec)
    path.unlink()
    assert StateStore.find(tmp_path, encoder.spec) is None


def test_a_folder_with_parts_missing_is_refused(encoder_folder):
    """transformers would fill the gap with random weights, or split text into nothing known."""
    folder = encoder_folder()
    weights = load_file(folder / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file(
        {n: w for n, w in weights.items() if n != name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=f"the weight {name} is missing"):
        TextEncoder(str(folder))
    save_file(
        {**weights, name: weights[name] * torch.nan}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="gives states that are no numbers"):
        TextEncoder(str(folder)).read(["star"])
    (folder / "model.safetensors").write_bytes(b"x" * 900)
    with pytest.raises(ValueError, match="is no text encoder that transformers loads"):
        TextEncoder(str(folder))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        TextEncoder(str(folder))


def test_weights_that_make_no_states_may_be_missing(encoder_folder, tmp_path):
    """Checkpoints of masked language models have no pooling layer."""
    folder = encoder_folder("bert")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    first, second = TextEncoder(str(folder)), TextEncoder(str(folder))
    assert first.spec == second.spec
    first.write(tmp_path / "copy")
    assert TextEncoder(str(tmp_path / "copy")).spec["sha256"] == first.spec["sha256"]


def test_what_is_no_encoder_is_refused_in_one_sentence(tmp_path, encoder_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        TextEncoder(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="there is no folder"):
        TextEncoder(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="more than the 20 that are read"):
        TextEncoder(str(encoder_folder())).read(["a " * 20])


def test_another_encoder_has_another_fingerprint_and_a_copy_the_same(encoder_folder, tmp_path):
    encoder = TextEncoder(str(encoder_folder()))
    encoder.write(tmp_path / "copy")
    assert TextEncoder(str(tmp_path / "copy")).spec["sha256"] == encoder.spec["sha256"]
    assert TextEncoder(str(encoder_folder(seed=1))).spec["sha256"] != encoder.spec["sha256"]
