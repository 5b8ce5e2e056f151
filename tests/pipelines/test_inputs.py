"""What `Pipeline` and the operations take, and that everything else is one sentence."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.data.images import to_pil, to_uint8
from latent_prior.pipelines import Pipeline, directions, operations


@pytest.fixture(scope="module")
def pipe(pipeline_folder) -> Pipeline:
    return Pipeline.from_pretrained(pipeline_folder)


@pytest.fixture(scope="module")
def vae(parts) -> Pipeline:
    return Pipeline(parts["autoencoder"]("vae"))


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def kinds(images):
    """The same images, float (B, C, H, W) of 256 levels, in other kinds."""
    levels = to_uint8(images)
    arrays = levels.permute(0, 2, 3, 1).numpy()
    pictures = [to_pil(image) for image in levels]
    return {
        "uint8 tensor": levels, "float64 tensor": images.double(), "list of tensors": list(levels),
        "uint8 array": arrays, "float array": (arrays / 255).astype(np.float32),
        "float64 array": arrays / 255, "list of arrays": list(arrays), "list of PIL": pictures,
        "tuple of PIL": tuple(pictures), "RGBA": [picture.convert("RGBA") for picture in pictures],
        "not contiguous": arrays[:, :, ::-1][:, :, ::-1],
    }  # fmt: skip


KINDS = list(kinds(torch.zeros(1, 3, 2, 2)))


def levelled(images):
    """Images of 256 levels."""
    return to_uint8(images).float() / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_the_usual_kinds_mean_the_same(pipe, pictures, kind):
    images = levelled(pictures(3))
    given = kinds(images)[kind]
    assert equal(pipe.encode(given), pipe.encode(images))
    torch.testing.assert_close(pipe.reconstruct(given), pipe.reconstruct(images))
    torch.testing.assert_close(pipe.embed(given), pipe.embed(images))
    completed = [
        pipe.complete(each, torch.ones(16, 16, dtype=torch.bool), generator=0, output_type="pt")
        for each in (given, images)
    ]
    torch.testing.assert_close(completed[0].images, completed[1].images)


def test_one_image_without_a_batch(pipe, pictures):
    image = levelled(pictures(1))
    for given in (
        image[0],
        to_uint8(image)[0].permute(1, 2, 0).numpy(),
        to_pil(to_uint8(image)[0]),
    ):
        assert equal(pipe.encode(given), pipe.encode(image))


def test_grey_arrays_need_no_axis_of_channels(parts):
    pipe = Pipeline(parts["autoencoder"]("vae", image_channels=1))
    levels = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    expected = pipe.encode(levels)
    assert equal(pipe.encode(levels[:, 0].numpy()), expected)
    assert equal(pipe.encode([to_pil(image).convert("RGB") for image in levels]), expected)
    assert len(pipe.encode(levels[0, 0].numpy())["latents"]) == 1


def test_what_comes_out_goes_in(pipe):
    for kind in ("pil", "pt", "np"):
        output = pipe(3, generator=1, output_type=kind)
        assert all(len(codes) == 3 for codes in pipe.encode(output.images).values())
        assert equal(output.codes, pipe(3, generator=1).codes)


WRONG = {
    "levels as floats": (torch.rand(2, 3, 16, 16) * 255, r"must lie in \[-1, 1\].*uint8"),
    "nan": (torch.full((2, 3, 16, 16), torch.nan), r"must lie in \[-1, 1\], not in \[nan"),
    "infinite": (torch.full((2, 3, 16, 16), torch.inf), r"must lie in \[-1, 1\]"),
    "integers": (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "must be uint8 or floats"),
    "bool": (torch.zeros(2, 3, 16, 16, dtype=torch.bool), "must be uint8 or floats"),
    "grey": (torch.zeros(2, 1, 16, 16), r"shape \(B, 3, 16, 16\), found \(2, 1, 16, 16\)"),
    "another size": (torch.zeros(2, 3, 16, 20), "resize or convert"),
    "channels last": (torch.zeros(2, 16, 16, 3), "shape"),
    "a vector": (torch.zeros(5), "shape"),
    "float array of levels": (np.ones((2, 16, 16, 3)) * 200, r"arrays must lie in \[0, 1\].*uint8"),
    "negative array": (-np.ones((2, 16, 16, 3)), r"arrays must lie in \[0, 1\]"),
    "nan array": (np.full((2, 16, 16, 3), np.nan), "must lie in"),
    "int64 array": (np.zeros((2, 16, 16, 3), np.int64), "uint8 or float, not int64"),
    "objects": (np.array([None]), "uint8 or float, not object"),
    "another size of PIL": (Image.new("RGB", (17, 16)), "resize or convert"),
    "text": ("image.png", "must be tensors, arrays or PIL images, not str"),
    "none": (None, "not NoneType"),
    "list of text": (["a.png"], "not str"),
    "number": (3, "not int"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_other_images_are_refused_in_a_sentence(pipe, kind):
    images, message = WRONG[kind]
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[0, 0] = False
    for call in (
        pipe.encode, pipe.embed, pipe.reconstruct, lambda x: pipe.complete(x, mask),
        lambda x: operations.interpolate(pipe, x, x), lambda x: operations.arithmetic(pipe, x, x, x),
        lambda x: operations.move(pipe, x, {}, [1.0]), lambda x: directions.class_means(pipe, [(x, [0])], [0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call(images)


def test_hidden_pixels_may_be_anything(pipe, vae, pictures):
    images = pictures(2)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[8:] = True
    for each in (pipe, vae):
        plain = each.complete(images, mask, generator=0, output_type="pt").images
        broken = each.complete(
            images.masked_fill(mask, torch.nan), mask, generator=0, output_type="pt"
        )
        assert torch.equal(plain, broken.images)


def test_masks_of_the_usual_kinds(pipe, pictures):
    images, mask = pictures(2), torch.zeros(16, 16, dtype=torch.bool)
    mask[4:9, 3:] = True
    expected = pipe.complete(images, mask, generator=0, output_type="pt").images
    for given in (mask.numpy(), Image.fromarray(mask.numpy()), Image.fromarray(mask.numpy() * np.uint8(255))):  # fmt: skip
        assert torch.equal(
            pipe.complete(images, given, generator=0, output_type="pt").images, expected
        )
    for wrong in (mask.float(), "mask.png", None, mask[:8], mask.numpy().astype(int)):
        with pytest.raises(ValueError, match="mask must be"):
            pipe.complete(images, wrong)


@pytest.mark.parametrize(
    "labels",
    [np.int64(2), np.array(2), torch.tensor(2), np.array([2, 2]), torch.tensor([2, 2]), [np.int32(2), "car"],
     (2, 2), range(2, 3)],
)  # fmt: skip
def test_labels_of_the_usual_kinds(pipe, labels):
    count = 1 if isinstance(labels, range) else 2
    assert pipe(count, labels=labels).labels == [2] * count


@pytest.mark.parametrize(
    "labels", [3, -2, "cow", 1.0, 2.5, True, None, [None], object(), np.array([0.5]), {}, [[0]], "", 2**80]
)  # fmt: skip
def test_other_labels_are_refused_in_a_sentence(pipe, labels):
    labels = [labels, 0] if labels is None else labels
    with pytest.raises(ValueError, match=r"label"):
        pipe(1, labels=labels)


def test_a_seed_is_a_generator(pipe, vae):
    seeded = torch.Generator().manual_seed(7)
    assert equal(pipe(3, generator=7).codes, pipe(3, generator=seeded).codes)
    assert equal(pipe(3, generator=np.int64(7), batch_size=2).codes, pipe(3, generator=7).codes)
    each = pipe(2, labels=0, generator=[7, torch.Generator().manual_seed(8)])
    assert equal(pipe(1, labels=0, generator=[8]).codes, {k: v[1:] for k, v in each.codes.items()})
    assert equal(
        vae.standard_normal(3, 7), vae.standard_normal(3, torch.Generator().manual_seed(7))
    )


@pytest.mark.parametrize("seed", ["0", 0.5, True, 2**70, np.random.default_rng(0), [None, "a"], {}])
def test_other_generators_are_refused_in_a_sentence(pipe, seed):
    with pytest.raises(ValueError, match=r"a generator must be a torch\.Generator or a seed"):
        pipe(2, generator=seed)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_images": "4"}, {"num_images": 2.5}, {"num_images": True}, {"num_images": -1},
        {"batch_size": "4"}, {"batch_size": 0}, {"batch_size": 1.5}, {"output_type": ["pil"]}, {"output_type": 3},
        {"temperature": "hot"}, {"temperature": float("nan")}, {"temperature": True}, {"top_k": 2.5},
        {"top_p": "all"}, {"guidance_scale": [1]}, {"guidance_interval": 3}, {"guidance_interval": "ab"},
        {"guidance_interval": (0, None)}, {"guidance_schedule": 3}, {"guidance_schedule": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_other_settings_are_refused_by_name(pipe, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        pipe(**arguments)


def test_settings_may_be_numbers_of_numpy(pipe):
    plain = pipe(2, generator=0, temperature=0.5, top_k=3)
    given = pipe(np.int64(2), generator=0, temperature=np.float32(0.5), top_k=np.int64(3))
    assert equal(plain.codes, given.codes)
    sampler = dataclasses.replace(pipe.sampler, temperature=np.float32(0.5), top_k=np.int64(3))
    assert [type(sampler.temperature), type(sampler.top_k)] == [float, int]


def test_codes_may_be_arrays_of_any_integers(pipe, vae, pictures):
    codes = pipe.encode(pictures(2))
    images = pipe.decode(codes)
    for kind in (np.uint8, np.int16, np.int64):
        assert torch.equal(
            pipe.decode({k: v.numpy().astype(kind) for k, v in codes.items()}), images
        )
    assert torch.equal(pipe.decode({k: v.tolist() for k, v in codes.items()}), images)
    latents = vae.encode(pictures(2))
    halves = {name: values.half() for name, values in latents.items()}
    torch.testing.assert_close(vae.decode(halves), vae.decode(latents), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "kind", ["float", "bool", "high", "negative", "flat", "text", "none", "extra", "empty", "one"]
)
def test_other_codes_are_refused_in_a_sentence(pipe, pictures, kind):
    codes = pipe.encode(pictures(2))["codes"]
    wrong = {
        "float": {"codes": codes.float()}, "bool": {"codes": codes > 3}, "high": {"codes": codes + 16},
        "negative": {"codes": codes - 16}, "flat": {"codes": codes.flatten()}, "text": {"codes": "abc"},
        "none": {"codes": None}, "extra": {"codes": codes, "top": codes}, "empty": {}, "one": {"codes": 3},
    }[kind]  # fmt: skip
    with pytest.raises(ValueError, match=r"codes"):
        pipe.decode(wrong)


@pytest.mark.parametrize(
    "tokens", [3, None, "abc", [["a"]], [[0.5] * 64], [[2**70] * 64], np.zeros((1, 64)), [3]]
)
def test_other_tokens_are_refused_in_a_sentence(pipe, tokens):
    with pytest.raises(ValueError, match="token"):
        pipe.decode(tokens)


def test_latents_and_vectors_must_fit_and_be_finite(vae, pipe, pictures):
    ((name, latents),) = vae.encode(pictures(2)).items()
    for wrong in (latents * torch.nan, latents / 0, latents[:, :1], latents[None]):
        with pytest.raises(ValueError, match=f"{name}"):
            vae.decode({name: wrong})
    for each in (vae, pipe):
        vectors = each.embed(pictures(2))
        assert torch.equal(each.decode_vectors({k: v.numpy() for k, v in vectors.items()}), each.decode_vectors(vectors))  # fmt: skip
        level = next(iter(vectors))
        for wrong in (
            {level: vectors[level] * torch.nan}, {level: vectors[level][:, :1]}, {}, None, {level: "a"},
            {**vectors, "other": vectors[level]},
        ):  # fmt: skip
            with pytest.raises(ValueError, match="vectors"):
                each.decode_vectors(wrong)
    with pytest.raises(ValueError, match="random_codes"):
        pipe.standard_normal(2)


def test_levels_must_be_of_as_many_images(parts, pictures):
    pipe = Pipeline(parts["autoencoder"]("vqvae2"))
    codes = pipe.encode(pictures(3))
    codes["top"] = codes["top"][:2]
    with pytest.raises(ValueError, match="must be equal, not 2 top, 3 bottom"):
        pipe.decode(codes)


def test_operations_name_what_does_not_fit(vae, pictures):
    images, vectors = pictures(3), vae.embed(pictures(3))
    direction = {name: values[0] for name, values in vectors.items()}
    for call, message in (
        (lambda: operations.interpolate(vae, images, images[:2]), "equal, not 3 starts, 2 ends"),
        (lambda: operations.interpolate(vae, images, images, steps=2.5), "steps must be a whole"),
        (lambda: operations.arithmetic(vae, images, images[:1], images), "equal, not 3 a, 1 b, 3 c"),
        (lambda: operations.move(vae, images, direction, []), "strengths must be one or more"),
        (lambda: operations.move(vae, images, direction, [np.nan]), "strengths must be one or more"),
        (lambda: operations.move(vae, images, direction, ["a"]), "strengths must be a tensor"),
        (lambda: operations.move(vae, images, {}, [1]), "the direction lacks the level"),
        (lambda: operations.move(vae, images, {n: v[..., None] for n, v in vectors.items()}, [1]), "has shape"),
        (lambda: operations.traverse(vae, images, direction, "0"), "dimension must be a whole"),
        (lambda: directions.attribute_direction(vae, [(images, [0, 1])]), "one integer per image"),
        (lambda: directions.attribute_direction(vae, [], method="best"), "method must be mean or probe"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
