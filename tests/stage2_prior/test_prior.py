import json
from dataclasses import astuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from latent_prior.data.codes import CodeSpec
from latent_prior.stage2_prior.kv_cache import Decoder
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.sequences import maps_to_sequence
from latent_prior.stage2_prior.transformer import swiglu_width
from tests.stage2_prior.samples import LATENTS, MASKED, PATCHES, RASTER, prefix, random_maps
from tests.stage2_prior.slow_transformer import slow_outputs

SHAPES = [((3, 4, 11),), ((2, 2, 5), (3, 3, 7))]


@pytest.mark.parametrize("levels", SHAPES)
def test_loss_is_the_mean_negative_log_likelihood_per_code(make_prior, levels):
    prior = make_prior(*levels)
    codes = random_maps(prior, 6)
    labels = torch.tensor([0, 1, 2, 0, -1, -1])
    with torch.no_grad():
        output = prior(codes, labels)
    assert output.logits.shape == (6, prior.length, prior.num_codes)
    sequence = maps_to_sequence(codes, prior.code_spec)
    total = 0.0
    for image in range(6):
        for position in range(prior.length):
            row = output.logits[image, position].double()
            total -= float(row[sequence[image, position]] - row.logsumexp(0))
    assert float(output.loss) == pytest.approx(total / 6 / prior.length, rel=1e-6)


@pytest.mark.parametrize("levels", SHAPES)
def test_a_code_changes_only_what_comes_after_it(make_prior, levels):
    prior = make_prior(*levels)
    codes = random_maps(prior, 1)
    labels = torch.tensor([1])
    with torch.no_grad():
        before = prior(codes, labels).logits
        other_class = prior(codes, torch.tensor([2])).logits
        assert (other_class != before).any(-1).all()  # the class reaches every position
        for level in prior.levels:
            for place in range(level.height * level.width):
                changed = {name: maps.clone() for name, maps in codes.items()}
                flat = changed[level.name].view(-1)
                flat[place] = (flat[place] + 1) % (level.last - level.first)
                after = prior(changed, labels).logits
                position = level.start + place
                assert torch.equal(after[:, : position + 1], before[:, : position + 1])
                assert (after != before)[:, position + 1 :].any(-1).all()


def test_with_patches_a_code_changes_only_what_comes_after_it(make_prior):
    prior = make_prior((2, 2, 5), (4, 4, 7), patch=2)
    sequence, start = prior._sequence(random_maps(prior, 1)), prefix(prior.null_token)
    with torch.no_grad():
        before = prior.logits_of(start, sequence)
        for position in range(prior.length - 1):
            changed = sequence.clone()
            first = prior.levels[position >= 4].first
            changed[0, position] = first + (changed[0, position] + 1 - first) % 5
            after = prior.logits_of(start, changed)
            assert torch.equal(after[:, : position + 1], before[:, : position + 1])
            assert (after != before)[:, position + 1 :].any(-1).all()


def test_completions_with_patches_keep_what_is_known(make_prior):
    prior = make_prior((4, 4, 11), patch=2)
    codes = random_maps(prior, 64)
    keep = {"codes": torch.zeros(64, 4, 4, dtype=torch.bool)}
    keep["codes"][:, :, :3] = True
    drawn = prior.sample(64, known=codes, keep=keep)["codes"]
    assert torch.equal(drawn[:, :, :3], codes["codes"][:, :, :3])
    assert not torch.equal(drawn, codes["codes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "masked", "patch": 2}, "leave it at 1 for --model.order masked"),
        ({"latents": (4, 2, 2), "patch": 2}, "leave it at 1 for latents"),
        ({"patch": 2}, "--model.patch 2 does not divide the sides of the map codes of 3 x 4"),
    ],
)
def test_patches_are_for_maps_of_codes_that_they_cover(make_prior, options, message):
    with pytest.raises(ValueError, match=message):
        make_prior(**options)


def test_logits_are_those_of_llama_with_the_same_weights(make_prior):
    prior = make_prior(width=32, heads=2, depth=3)
    width, head_width = 32, 16
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=prior.null_token + 1,
            hidden_size=width,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=swiglu_width(width, 4.0),
            max_position_embeddings=prior.length,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    # Llama rotates channels i and i + D / 2 together, RoFormer and the prior 2 i and 2 i + 1.
    halves = torch.arange(head_width).view(-1, 2).T.flatten()
    order = torch.cat([halves + head * head_width for head in range(2)])
    with torch.no_grad():
        llama.model.embed_tokens.weight.copy_(prior.embedding.weight)
        llama.model.norm.weight.copy_(prior.final_gain)
        llama.lm_head.weight.zero_()[: prior.num_codes] = prior.head.weight
        for theirs, ours in zip(llama.model.layers, prior.blocks, strict=True):
            q, k, v = ours.qkv.weight.chunk(3)
            theirs.self_attn.q_proj.weight.copy_(q[order])
            theirs.self_attn.k_proj.weight.copy_(k[order])
            theirs.self_attn.v_proj.weight.copy_(v)
            theirs.self_attn.o_proj.weight.copy_(ours.attention_out.weight)
            gate, up = ours.gate_up.weight.chunk(2)
            theirs.mlp.gate_proj.weight.copy_(gate)
            theirs.mlp.up_proj.weight.copy_(up)
            theirs.mlp.down_proj.weight.copy_(ours.mlp_out.weight)
            theirs.input_layernorm.weight.copy_(ours.attention_gain)
            theirs.post_attention_layernorm.weight.copy_(ours.mlp_gain)
        codes = random_maps(prior, 5)
        labels = torch.tensor([0, 1, 2, -1, -1])
        start = torch.where(labels < 0, prior.null_token, labels + prior.num_codes)
        tokens = torch.cat((start.unsqueeze(1), codes["codes"].flatten(1)[:, :-1]), dim=1)
        expected = llama(input_ids=tokens).logits[..., : prior.num_codes]
        found = prior(codes, labels).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_samples_do_not_depend_on_their_batch(make_prior):
    prior = make_prior((4, 4, 64))
    labels = [0, 1, 2, -1, 0, 1, 2]

    def generators(places):
        return [torch.Generator().manual_seed(place) for place in places]

    for scale in (1.0, 2.0):
        whole = prior.sample(7, labels, guidance_scale=scale, generator=generators(range(7)))
        for places in ([0], [3], [5, 2], [6, 0, 4, 1]):
            part = prior.sample(
                len(places),
                [labels[place] for place in places],
                guidance_scale=scale,
                generator=generators(places),
            )
            assert torch.equal(part["codes"], whole["codes"][places])


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_call_split_into_smaller_ones_gives_the_same_codes(make_prior, scale):
    prior = make_prior((4, 4, 64))
    labels = torch.arange(7) % 3
    generator = torch.Generator().manual_seed(5)
    whole = prior.sample(7, labels, guidance_scale=scale, generator=generator)["codes"]
    generator.manual_seed(5)
    parts = [
        prior.sample(len(part), part, guidance_scale=scale, generator=generator)["codes"]
        for part in labels.split(3)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", [*RASTER, *PATCHES, *MASKED, *LATENTS])
def test_a_stream_fills_up_to_what_a_call_samples(make_prior, kind):
    levels, options = (RASTER | PATCHES | MASKED | LATENTS)[kind]
    prior = make_prior(*levels, **options)
    labels, settings = [0, 2, -1], {"guidance_scale": 2.0}

    def seeded():
        return torch.Generator().manual_seed(7)

    whole = prior.sample(3, labels, generator=seeded(), **settings)
    shown = list(prior.stream(3, labels, updates=4, generator=seeded(), **settings))
    assert 2 <= len(shown) <= 4
    assert not torch.is_inference(next(iter(shown[0].values())))
    hidden_before = None
    for maps in shown:
        hidden = {
            name: values.isnan() if prior.latents else values == -1 for name, values in maps.items()
        }
        for name, values in maps.items():
            assert torch.equal(values[~hidden[name]], whole[name][~hidden[name]])
            assert hidden_before is None or not (hidden[name] & ~hidden_before[name]).any()
        count = sum(int(each.sum()) for each in hidden.values())
        assert hidden_before is None or count < sum(int(h.sum()) for h in hidden_before.values())
        hidden_before = hidden
    assert count == 0


@pytest.mark.parametrize("order", ["raster", "masked"])
def test_streams_may_alternate_or_end_early(make_prior, order):
    """Each has a cache of keys and values of its own."""
    prior = make_prior(order=order)

    def started(seed):
        return prior.stream(2, [0, 1], updates=5, generator=torch.Generator().manual_seed(seed))

    alone = [list(started(seed)) for seed in (1, 2)]
    alternating = zip(started(1), started(2), strict=True)
    for both, first, second in zip(alternating, *alone, strict=True):
        assert torch.equal(both[0]["codes"], first["codes"])
        assert torch.equal(both[1]["codes"], second["codes"])
    left = started(3)
    next(left)
    again = prior.sample(2, [0, 1], generator=torch.Generator().manual_seed(1))
    assert torch.equal(again["codes"], alone[0][-1]["codes"])
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    left.close()


def test_a_stream_shows_what_is_known_from_the_start(make_prior):
    prior = make_prior()
    known = random_maps(prior, 2)
    keep = {"codes": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5}
    for maps in prior.stream(2, updates=3, known=known, keep=keep):
        assert torch.equal(maps["codes"][keep["codes"]], known["codes"][keep["codes"]])
    with pytest.raises(ValueError, match="label 3 is out of range"):
        prior.stream(1, [3], updates=3)


def test_the_global_seed_repeats_samples_without_a_generator(make_prior):
    prior = make_prior()
    torch.manual_seed(1)
    first, second = prior.sample(2)["codes"], prior.sample(2)["codes"]
    torch.manual_seed(1)
    assert torch.equal(prior.sample(2)["codes"], first)
    assert not torch.equal(first, second)


def test_samples_are_ordinary_tensors(make_prior):
    """Tensors made in inference mode could not be used in training."""
    prior = make_prior()
    codes = prior.sample(2, [0, 1])
    assert codes["codes"].dtype == torch.int64
    prior(codes, torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())


def test_guidance_without_a_class_or_at_scale_one_changes_nothing(make_prior):
    def draw(prior, labels, scale):
        generator = torch.Generator().manual_seed(0)
        return prior.sample(4, labels, guidance_scale=scale, generator=generator)["codes"]

    prior = make_prior()
    labels = [0, 1, 2, 0]
    assert not torch.equal(draw(prior, labels, 3.0), draw(prior, labels, 1.0))
    assert torch.equal(draw(prior, labels, 0.0), draw(prior, None, 1.0))
    assert torch.equal(draw(prior, None, 3.0), draw(prior, None, 1.0))
    assert torch.equal(draw(prior, [-1] * 4, 3.0), draw(prior, None, 1.0))
    for unconditional in (make_prior(condition="none"), make_prior(num_classes=0)):
        assert torch.equal(draw(unconditional, None, 3.0), draw(unconditional, None, 1.0))


def test_the_doubled_batch_is_computed_only_where_guidance_acts(make_prior, monkeypatch):
    rows = []

    class Counting(Decoder):
        def __init__(self, prior, count, front):
            rows.append(count)
            super().__init__(prior, count, front)

    monkeypatch.setattr("latent_prior.stage2_prior.kv_cache.Decoder", Counting)
    prior = make_prior()
    prior.sample(4, [0, 1, 2, 0])
    prior.sample(4, guidance_scale=2.0)
    prior.sample(4, [0, 1, 2, 0], guidance_scale=2.0)
    assert rows == [4, 8]  # the second call has the first one's decoder


def test_an_unconditional_prior_starts_at_the_null_class(make_prior):
    prior = make_prior(condition="none")
    assert prior.num_classes == 0
    assert prior.null_token == prior.num_codes
    codes = random_maps(prior, 4)
    with torch.no_grad():  # a dataset's labels are of no interest to it
        assert torch.equal(prior(codes, torch.tensor([0, 1, 2, 0])).loss, prior(codes).loss)
    with pytest.raises(ValueError, match="it has no classes"):
        prior.sample(1, [0])


def test_label_dropout_of_one_makes_labels_irrelevant_in_training_only(make_prior):
    prior = make_prior(label_dropout=1.0)
    codes, labels = random_maps(prior, 8), torch.arange(8) % 3
    with torch.no_grad():
        assert not torch.equal(prior(codes, labels).loss, prior(codes).loss)
        prior.train()
        assert torch.equal(prior(codes, labels).loss, prior(codes).loss)


def test_label_dropout_follows_the_global_generator_and_its_rate(make_prior):
    prior = make_prior((1, 1, 2), label_dropout=0.3).train()
    codes, labels = random_maps(prior, 3000), torch.zeros(3000, dtype=torch.long)

    def hidden():
        torch.manual_seed(0)
        with torch.no_grad():
            logits = prior(codes, labels).logits
        return (logits == prior(codes).logits).all(-1).flatten()

    assert torch.equal(hidden(), hidden())
    assert float(hidden().float().mean()) == pytest.approx(0.3, abs=0.03)


def test_it_learns_sixteen_images_by_heart(make_prior):
    prior = make_prior((4, 4, 16), num_classes=16, spread=1.0).train()
    codes, labels = random_maps(prior, 16), torch.arange(16)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = prior(codes, labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01
    assert torch.equal(prior.sample(16, labels, temperature=0.0)["codes"], codes["codes"])


# Keys of a prior's config.json in the first version; what came later has a default that changes
# nothing.
FIRST_KEYS = {
    *("model_type", "architectures", "code_spec", "order", "positions", "width", "depth", "heads"),
    *("mlp_ratio", "dropout", "label_dropout", "gradient_checkpointing", "mixtures", "chunk"),
    "weights_sha256",
}


def test_a_prior_of_the_first_version_loads(make_prior, tmp_path):
    prior = make_prior()
    prior.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    values = {key: v for key, v in json.loads(config.read_text()).items() if key in FIRST_KEYS}
    config.write_text(json.dumps(values))
    (tmp_path / "manifest.json").unlink()
    codes, labels = random_maps(prior, 3), torch.arange(3)
    with torch.no_grad():
        expected = prior(codes, labels).logits
        assert torch.equal(
            TransformerPrior.from_pretrained(tmp_path)(codes, labels).logits, expected
        )


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "dropout": 0.2}])
@pytest.mark.parametrize("kind", ["two maps", "masked, two maps, rows and columns", *LATENTS])
def test_saving_and_loading_keeps_every_tensor_and_output(make_prior, tmp_path, kind, options):
    levels, of_kind = (RASTER | PATCHES | MASKED | LATENTS)[kind]
    prior = make_prior(*levels, **of_kind, **options)
    prior.save_pretrained(tmp_path)
    loaded = TransformerPrior.from_pretrained(tmp_path)
    assert loaded.code_spec == prior.code_spec
    assert loaded.fingerprint == prior.fingerprint
    assert loaded.config.gradient_checkpointing == prior.config.gradient_checkpointing
    everything, again = dict(prior.named_parameters()), dict(loaded.named_parameters())
    everything |= dict(prior.named_buffers())
    again |= dict(loaded.named_buffers())
    assert everything.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in everything.items())
    codes, labels, outputs = random_maps(prior, 3), torch.tensor([0, 2, -1]), []
    with torch.no_grad():
        for model in (prior, loaded):
            torch.manual_seed(2)  # of the masks
            outputs.append(model(codes, labels))
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(*map(astuple, outputs), strict=True)
    )
    seeds = [torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)]
    ours, theirs = (
        model.sample(2, [0, 1], generator=seed)
        for model, seed in zip((prior, loaded), seeds, strict=True)
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_gradient_checkpointing_changes_no_gradient(make_prior):
    gradients = []
    for gradient_checkpointing in (False, True):
        prior = make_prior(gradient_checkpointing=gradient_checkpointing, dropout=0.5).train()
        torch.manual_seed(1)
        prior(random_maps(prior, 4), torch.tensor([0, 1, 2, -1])).loss.backward()
        gradients.append([parameter.grad for parameter in prior.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_autocast_still_gives_float32(make_prior):
    prior = make_prior()
    codes, labels = random_maps(prior, 3), torch.tensor([0, 1, 2])
    expected = prior(codes, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = prior(codes, labels)
    output.loss.backward()
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0)


def test_fresh_weights_are_normal_and_smaller_into_the_residual_stream(make_spec):
    torch.manual_seed(0)
    config = PriorConfig(code_spec=make_spec((4, 4, 256)).to_dict(), width=64, depth=8)
    prior = TransformerPrior(config)
    for name, parameter in prior.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            into_stream = name.endswith(("attention_out.weight", "mlp_out.weight"))
            wanted = 0.02 / 4 if into_stream else 0.02
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.05)


def test_values_out_of_range_are_named(make_prior):
    prior = make_prior((2, 2, 5), (3, 3, 7))
    codes = random_maps(prior, 2)
    codes["level1"][1, 2, 2] = 7
    with pytest.raises(
        ValueError, match="code 7 in map level1 is out of range: its vocabulary is 7"
    ):
        prior(codes)
    codes["level1"][1, 2, 2] = -1
    with pytest.raises(ValueError, match="code -1 in map level1"):
        prior(codes)
    codes = random_maps(prior, 2)
    for wrong in (3, -2):
        with pytest.raises(ValueError, match=f"label {wrong} is out of range: .* 0 to 2, or -1"):
            prior(codes, torch.tensor([0, wrong]))
        with pytest.raises(ValueError, match=f"label {wrong} is out of range"):
            prior.sample(2, [0, wrong])
    with pytest.raises(ValueError, match="labels of shape"):
        prior(codes, torch.tensor([0]))
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        prior.sample(0)
    with pytest.raises(ValueError, match="top_p must lie in"):
        prior.sample(1, top_p=0.0)


def test_a_config_without_codes_is_refused(make_spec):
    with pytest.raises(ValueError, match="code spec: Object missing required field"):
        TransformerPrior(PriorConfig())
    with pytest.raises(ValueError, match="multiple of 2 x heads"):
        PriorConfig(code_spec=make_spec((2, 2, 4)).to_dict(), width=30)
    assert CodeSpec.from_dict(PriorConfig(code_spec=make_spec((2, 2, 4)).to_dict()).code_spec)


def keep_nothing(codes):
    return {name: torch.zeros_like(maps, dtype=torch.bool) for name, maps in codes.items()}


def random_keep(codes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(maps.shape, generator=generator) < 0.5 for name, maps in codes.items()}


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("levels", SHAPES)
def test_completion_keeps_what_is_known_and_draws_the_rest(make_prior, levels, scale):
    prior = make_prior(*levels)
    known, labels = random_maps(prior, 5), [0, 1, 2, -1, 0]

    def draw(**completion):
        generator = torch.Generator().manual_seed(5)
        return prior.sample(5, labels, guidance_scale=scale, generator=generator, **completion)

    plain, keep = draw(), random_keep(known)
    nothing = draw(known=known, keep=keep_nothing(known))
    everything = draw(known=known, keep={name: ~no for name, no in keep_nothing(known).items()})
    part = draw(known=known, keep=keep)
    for name in plain:
        assert torch.equal(nothing[name], plain[name])
        assert torch.equal(everything[name], known[name])
        assert torch.equal(part[name][keep[name]], known[name][keep[name]])
    assert any((part[name] != known[name]).any() for name in known)
    # Keeping a sample's own codes, at any positions, changes none of the others.
    again = draw(known=plain, keep=keep)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_completions_do_not_depend_on_their_batch_nor_on_what_is_hidden(make_prior):
    prior = make_prior((4, 4, 64))
    known = random_maps(prior, 6)
    keep, labels = random_keep(known), [0, 1, 2, -1, 0, 1]

    def draw(places, codes):
        return prior.sample(
            len(places),
            [labels[place] for place in places],
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(place) for place in places],
            known={"codes": codes["codes"][places]},
            keep={"codes": keep["codes"][places]},
        )["codes"]

    whole = draw(list(range(6)), known)
    for places in ([0], [5, 2], [3, 0, 4]):
        assert torch.equal(draw(places, known), whole[places])
    # Not even codes that are none are looked at where they are not kept.
    hidden = {"codes": torch.where(keep["codes"], known["codes"], -7)}
    assert torch.equal(draw(list(range(6)), hidden), whole)


@pytest.mark.parametrize(
    ("levels", "kept"), [(((1, 4, 3),), (1, 2)), (((1, 2, 3), (1, 2, 4)), (0, 2))]
)
def test_completions_have_the_frequencies_of_the_prior(make_prior, levels, kept):
    """Against the product of conditionals from the forward pass for every possible completion."""
    prior = make_prior(*levels, spread=8.0)
    count, label = 20_000, 1
    known = random_maps(prior, 1, seed=3)
    keep = keep_nothing(known)
    for place in kept:
        level = next(level for level in prior.levels if level.start <= place < level.stop)
        keep[level.name][0, 0, place - level.start] = True
    sizes = [level.last - level.first for level in prior.levels for _ in range(level.width)]
    free = [place for place in range(4) if place not in kept]
    drawn = prior.sample(
        count,
        [label] * count,
        generator=torch.Generator().manual_seed(0),
        known={name: codes.repeat(count, 1, 1) for name, codes in known.items()},
        keep={name: places.repeat(count, 1, 1) for name, places in keep.items()},
    )
    drawn = torch.cat([drawn[level.name].flatten(1) for level in prior.levels], dim=1)
    flat = torch.cat([known[level.name].flatten(1) for level in prior.levels], dim=1)
    total = 0.0
    for first in range(sizes[free[0]]):
        for second in range(sizes[free[1]]):
            flat[0, free[0]], flat[0, free[1]] = first, second
            maps = {level.name: flat[:, level.start : level.stop, None].transpose(1, 2) for level in prior.levels}  # fmt: skip
            with torch.no_grad():
                logits = prior(maps, torch.tensor([label])).logits[0].double().log_softmax(-1)
            sequence = maps_to_sequence(maps, prior.code_spec)[0]
            probability = float(sum(logits[place, sequence[place]] for place in free).exp())
            share = float((drawn == flat).all(1).double().mean())
            assert share == pytest.approx(probability, abs=4 * (probability / count) ** 0.5 + 1e-4)
            total += probability
    assert total == pytest.approx(1)


def test_a_completion_that_does_not_fit_is_refused(make_prior):
    prior = make_prior((2, 2, 5), (3, 3, 7))
    known = random_maps(prior, 2)
    keep = random_keep(known)
    for half in ({"known": known}, {"keep": keep}):
        with pytest.raises(ValueError, match="belong together"):
            prior.sample(2, **half)
    for wrong in (
        {"level0": keep["level0"]},
        keep | {"level1": keep["level1"].long()},
        keep | {"level1": keep["level1"][:, :2]},
    ):
        with pytest.raises(ValueError, match="keep needs a bool map 'level1' of shape"):
            prior.sample(2, known=known, keep=wrong)
    with pytest.raises(ValueError, match="code maps are level0"):
        prior.sample(2, known={"level0": known["level0"]}, keep=keep)
    with pytest.raises(ValueError, match="3 images need as many known codes, not 2"):
        prior.sample(3, known=known, keep=keep)
    known["level0"][0, 0, 0], keep["level0"][0, 0, 0] = 5, True
    with pytest.raises(ValueError, match="code 5 in map level0 is out of range"):
        prior.sample(2, known=known, keep=keep)


@pytest.mark.parametrize("kind", [*RASTER, *PATCHES, *MASKED, *LATENTS])
def test_outputs_are_those_of_plain_loops_over_positions(make_prior, kind):
    levels, options = (RASTER | PATCHES | MASKED | LATENTS)[kind]
    prior = make_prior(*levels, **options)
    sequence = prior._sequence(random_maps(prior, 1))
    if prior.masked:
        sequence[0, ::2] = prior.mask_token
    with torch.no_grad():
        found = prior.logits_of(prefix(prior.null_token - 1), sequence)[0].double()
        expected = slow_outputs(prior, prior.null_token - 1, sequence[0])
    for level in prior.levels:
        own = slice(level.start, level.stop), slice(level.first, level.last)
        assert found[own].std() > 0.5
        torch.testing.assert_close(found[own], expected[own], rtol=1e-5, atol=1e-5)
        others = found[level.start : level.stop].clone()
        others[:, level.first : level.last] = -torch.inf
        assert (others == -torch.inf).all()
