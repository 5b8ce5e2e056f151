import dataclasses

import pytest
import torch

from latent_prior.data.codes import Level
from latent_prior.stage2_prior.engine_tokens import codes_from_tokens
from latent_prior.stage2_prior.sequences import maps_to_sequence


@pytest.mark.parametrize("levels", [((3, 4, 11),), ((2, 2, 5), (3, 3, 7))])
def test_tokens_come_back_as_the_maps_they_were_made_of(make_spec, levels):
    spec = make_spec(*levels)
    maps = {
        level.name: torch.randint(level.vocabulary, (5, level.height, level.width))
        for level in spec.levels
    }
    sequence = maps_to_sequence(maps, spec)
    num_codes = sum(vocabulary for _, _, vocabulary in levels)
    classes = torch.tensor([0, 1, 2, 3, 3]).unsqueeze(1) + num_codes
    with_class = torch.cat((classes, sequence), dim=1)
    for tokens in (sequence, sequence.int(), with_class, sequence.tolist(), with_class.tolist()):
        found = codes_from_tokens(tokens, spec)
        assert list(found) == list(maps)
        for name, codes in maps.items():
            assert found[name].dtype == torch.int64
            assert torch.equal(found[name], codes)


def test_every_code_is_taken_and_no_other_number(make_spec):
    spec = make_spec((1, 2, 5))
    for code in range(5):
        assert codes_from_tokens([[code, 0]], spec)["codes"].tolist() == [[[code, 0]]]
    for token in (-1, 5, 8):
        with pytest.raises(ValueError, match=f"token {token} is not a code of codes"):
            codes_from_tokens([[0, 0], [0, token]], spec)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 1, 2]], r"shape \(1, 3\); expected \(images, 4\), or \(images, 5\)"),
        ([[0] * 6], r"shape \(1, 6\)"),
        ([0, 1, 2, 3], r"shape \(4,\)"),
        ([], r"shape \(0,\)"),
        ([[0, 1, 2, 3], [0, 1]], "the sequences have 2 and 4 tokens; each needs 4"),
        ([[0.0, 1.0, 2.0, 3.0]], "tokens must be integers, not torch.float32"),
        ([[True] * 4], "tokens must be integers, not torch.bool"),
        ([[7, 0, 1, 2, 3], [6, 0, 1, 2, 3]], "class token \\(7 or more\\), but one begins with a code"),
        ([[7, 0, 1, 2, 7]], "token 7 is not a code"),
    ],
)  # fmt: skip
def test_tokens_that_are_no_image_are_refused(make_spec, tokens, message):
    spec = make_spec((2, 2, 7))
    if not isinstance(tokens[0] if tokens else 0, list):
        tokens = torch.tensor(tokens)
    with pytest.raises(ValueError, match=message):
        codes_from_tokens(tokens, spec)


def test_a_token_of_another_map_is_refused(make_spec):
    spec = make_spec((1, 1, 5), (1, 2, 7))
    assert codes_from_tokens([[4, 5, 11]], spec)["level1"].tolist() == [[[0, 6]]]
    with pytest.raises(ValueError, match=r"token 4 is not a code of level1 \(5 to 11\)"):
        codes_from_tokens([[4, 4, 11]], spec)
    with pytest.raises(ValueError, match=r"token 5 is not a code of level0 \(0 to 4\)"):
        codes_from_tokens([[5, 5, 11]], spec)


def test_latents_are_refused(make_spec):
    latents = dataclasses.replace(
        make_spec((1, 1, 5)), kind="latents", levels=(Level("latents", 1, 2, channels=3),)
    )
    with pytest.raises(ValueError, match="latents have no tokens"):
        codes_from_tokens([[0, 1]], latents)
