from types import SimpleNamespace

import pytest
import torch

from latent_prior.data.codes import Level
from latent_prior.pipelines import Pipeline
from latent_prior.pipelines.completion import fill_with_mean, hidden_codes, one_mask_each, settle


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def box(left, top, right, bottom, size=16):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_code_is_hidden_if_one_pixel_of_its_patch_is():
    levels = (Level("top", 2, 2, vocabulary=4), Level("bottom", 8, 4, vocabulary=4))
    masks = torch.rand(5, 1, 16, 16, generator=seeded()) < 0.02
    masks[4] = False
    found = hidden_codes(masks, levels)
    for level in levels:
        high, wide = 16 // level.height, 16 // level.width
        for image in range(5):
            for row in range(level.height):
                for column in range(level.width):
                    patch = masks[image, 0, row * high : (row + 1) * high, column * wide : (column + 1) * wide]  # fmt: skip
                    assert found[level.name][image, row, column] == patch.any()
    assert found["bottom"].any()
    assert not found["bottom"][4].any()


def test_the_hole_takes_the_mean_colour_of_what_is_visible(pictures):
    images = pictures(3)
    hidden = torch.stack([box(0, 0, 8, 16), box(3, 2, 9, 5), box(0, 0, 16, 16)]).unsqueeze(1)
    images[1, :, 2:5, 3:9] = torch.nan  # nobody looks there
    filled = fill_with_mean(images, hidden)
    assert torch.equal(filled[~hidden.expand_as(filled)], images[~hidden.expand_as(images)])
    torch.testing.assert_close(filled[0, :, 0, 0], images[0, :, :, 8:].mean((1, 2)))
    visible = images[1][:, ~hidden[1, 0]]
    torch.testing.assert_close(filled[1, :, 3, 4], visible.mean(1))
    assert (filled[2] == 0).all()


def test_one_mask_serves_all_images(pictures):
    images, mask = pictures(3), box(1, 2, 3, 4)
    assert torch.equal(one_mask_each(mask, images), mask.expand(3, 1, 16, 16))
    each = torch.stack([mask, ~mask, mask])
    assert torch.equal(one_mask_each(each, images), each.unsqueeze(1))
    for wrong in (mask.float(), mask[:8], each[:2], each.unsqueeze(1)):
        with pytest.raises(ValueError, match="the mask must be bool of shape"):
            one_mask_each(wrong, images)


def test_latents_settle_on_the_least_squares_completion():
    """With a linear autoencoder, a projection, the limit is the best fit to the visible pixels."""
    basis = torch.linalg.qr(torch.randn(16, 3, generator=seeded()).double()).Q
    encode = lambda images: {"latents": images.flatten(1) @ basis}  # noqa: E731
    decode = lambda latents: (latents["latents"] @ basis.T).view(-1, 1, 4, 4)  # noqa: E731
    images = 0.2 * torch.randn(2, 1, 4, 4, generator=seeded(1)).double()
    hidden = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    hidden[:, :, 1:3, 2:] = True
    linear = SimpleNamespace(encode=encode, decode=decode)
    found = settle(linear, images, hidden, rounds=500)["latents"]
    seen = ~hidden[0].flatten()
    best = torch.linalg.lstsq(basis[seen], images.flatten(1)[:, seen].T).solution.T
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0)
    start = settle(linear, images, hidden, rounds=0)["latents"]
    assert torch.equal(start, encode(images)["latents"])


@pytest.mark.parametrize("paste", [True, False])
def test_every_member_completes(member, pictures, paste):
    images, mask = pictures(4), box(0, 5, 16, 13)
    output = member.complete(images, mask, generator=seeded(), paste=paste, output_type="pt")
    assert output.images.shape == images.shape
    assert output.labels == [-1] * 4
    decoded = member.decode(output.codes)
    if not paste:
        torch.testing.assert_close(output.images, decoded, atol=1e-5, rtol=0)
        return
    assert torch.equal(output.images[..., ~mask], images[..., ~mask])
    torch.testing.assert_close(output.images[..., mask], decoded[..., mask], atol=1e-5, rtol=0)
    again = member.complete(
        images.masked_fill(mask, torch.nan), mask, generator=seeded(), output_type="pt"
    )
    assert torch.equal(again.images, output.images)  # what is hidden has no say


def test_completions_do_not_depend_on_their_batch(member, pictures):
    images = pictures(5)
    masks = torch.stack([box(0, k, 16, k + 4) for k in range(5)])
    # Few rounds: untrained networks may make a difference of rounding larger in each.
    settings = {"output_type": "pt", "rounds": 2}
    labels = [0, 1, 2, -1, 0] if member.prior else None

    def draw(**more):
        generators = [seeded(place) for place in range(5)]
        return member.complete(
            images, masks, labels=labels, generator=generators, **settings, **more
        )

    whole = draw()
    torch.testing.assert_close(draw(batch_size=2).images, whole.images, atol=1e-4, rtol=0)
    label = None if labels is None else 2
    alone = member.complete(images[2:3], masks[2], labels=label, generator=[seeded(2)], **settings)
    torch.testing.assert_close(alone.images[0], whole.images[2], atol=1e-4, rtol=0)


def test_only_codes_that_the_hole_touches_are_drawn(coded_member, pictures):
    images, mask = pictures(4), box(5, 5, 9, 10)
    found = coded_member.complete(images, mask, generator=seeded()).codes
    given = coded_member.encode(fill_with_mean(images, mask.expand(4, 1, 16, 16)))
    drawn = hidden_codes(mask.expand(4, 1, 16, 16), coded_member.code_spec.levels)
    for name in found:
        assert drawn[name].any()
        assert torch.equal(found[name][~drawn[name]], given[name][~drawn[name]])
    assert any((found[name] != given[name]).any() for name in found)


def test_nothing_hidden_is_the_image_and_everything_hidden_is_a_sample(coded_member, pictures):
    images = pictures(3)
    whole = coded_member.complete(images, box(0, 0, 0, 0), paste=False, output_type="pt")
    torch.testing.assert_close(whole.images, coded_member.reconstruct(images), atol=1e-5, rtol=0)
    settings = {"labels": [0, 1, 2], "temperature": 0.8, "guidance_scale": 2.0}
    sample = coded_member(3, **settings, generator=seeded(), output_type="pt")
    hidden = coded_member.complete(
        images, box(0, 0, 16, 16), **settings, generator=seeded(), output_type="pt"
    )
    assert hidden.labels == sample.labels
    assert all(torch.equal(hidden.codes[name], sample.codes[name]) for name in sample.codes)
    torch.testing.assert_close(hidden.images, sample.images)


def test_more_rounds_leave_the_visible_part_alone_and_settle(parts, pictures):
    pipe = Pipeline(parts["autoencoder"]("vae"))
    images, mask = pictures(3), box(0, 8, 16, 16)

    def after(rounds):
        return pipe.complete(images, mask, rounds=rounds, output_type="pt").images

    assert (after(20) - after(21)).abs().max() < (after(0) - after(1)).abs().max()
    one = pipe.reconstruct(fill_with_mean(images, mask.expand(3, 1, 16, 16)))
    torch.testing.assert_close(after(0)[..., mask], one[..., mask], atol=1e-6, rtol=0)


def test_a_vae_that_decodes_pixel_by_pixel_completes_too(parts, pictures):
    pipe = Pipeline(parts["autoencoder"]("vae", autoregressive_layers=1))
    images, mask = pictures(1), box(0, 8, 16, 16)
    output = pipe.complete(images, mask, rounds=1, output_type="pt")
    assert torch.equal(output.images[..., ~mask], images[..., ~mask])


def test_pictures_come_in_any_form(member, pictures):
    images, mask = pictures(2), box(0, 8, 16, 16)
    drawn = {
        kind: member.complete(images, mask, generator=seeded(), output_type=kind).images
        for kind in ("pil", "np", "pt")
    }
    assert drawn["pil"][0].size == (16, 16)
    assert drawn["np"].shape == (2, 16, 16, 3)
    torch.testing.assert_close(
        torch.from_numpy(drawn["np"]).permute(0, 3, 1, 2) * 2 - 1, drawn["pt"]
    )


def test_wrong_input_is_named(member, parts, pictures):
    images, mask = pictures(2), box(0, 8, 16, 16)
    for culprit, arguments in (
        ("the mask must be bool", {"mask": mask.float()}),
        ("output_type must be", {"output_type": "jpg"}),
        ("batch_size must be at least 1", {"batch_size": 0}),
        ("one generator, or one each", {"generator": [seeded()] * 3}),
        ("takes images of shape", {"images": images[:, :1]}),
    ):
        with pytest.raises(ValueError, match=culprit):
            member.complete(**{"images": images, "mask": mask, **arguments})
    if member.prior is None:
        for arguments in ({"labels": 0}, {"temperature": 1.0}, {"top_k": 3}):
            with pytest.raises(ValueError, match=f"{next(iter(arguments))} is for a prior over codes"):  # fmt: skip
                member.complete(images, mask, **arguments)
        return
    for culprit, arguments in (
        ("label 3 is out of range", {"labels": 3}),
        ("2 images need one label, or one each, not 3", {"labels": [0, 1, 2]}),
        ("top_p must lie in", {"top_p": 2.0}),
    ):
        with pytest.raises(ValueError, match=culprit):
            member.complete(images, mask, **arguments)
    with pytest.raises(ValueError, match="no prior to sample the hidden codes from"):
        Pipeline(member.autoencoder).complete(images, mask)
