import io
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from latent_prior.evaluation.features import published
from latent_prior.evaluation.features.published import published_statistics

NAME, FILE = "cifar10/32/train", "cifar10_clean_train_32"
INCEPTION = SimpleNamespace(name="inception", dimension=6)
CLIP = SimpleNamespace(name="clip", dimension=6)


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


FEATURES = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
STATISTICS = {"mu": FEATURES.mean(0), "sigma": np.cov(FEATURES, rowvar=False)}


@pytest.fixture
def publish(serve, monkeypatch):
    def start(**files):
        served = {f"{name}.npz": (content, len(content)) for name, content in files.items()}
        monkeypatch.setattr(published, "ADDRESS", serve(served))

    return start


def gone(monkeypatch):
    monkeypatch.setattr(published, "ADDRESS", "http://127.0.0.1:9/")


@pytest.mark.parametrize(
    ("network", "model"), [(INCEPTION, "inception_v3"), (CLIP, "clip_vit_b_32")]
)
@pytest.mark.parametrize("metric", ["FID", "KID"])
def test_the_addresses_are_clean_fids(monkeypatch, network, model, metric):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid 0.1.35 imports deprecated names
        from cleanfid import features as cleanfid
    theirs, ours = [], []

    def seen(local_folder, url):
        theirs.append(url.replace("stats//", "stats/"))
        raise ConnectionError

    def absent(url, target, otherwise):
        ours.append(url)
        if not url.endswith("_kid.npz"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(packed(**STATISTICS))
        else:
            raise FileNotFoundError

    monkeypatch.setattr(cleanfid, "check_download_url", seen)
    monkeypatch.setattr(published, "download", absent)
    with pytest.raises(ConnectionError):
        cleanfid.get_reference_statistics(
            "FFHQ", 256, split="trainval70k", model_name=model, metric=metric
        )
    published_statistics("FFHQ/256/trainval70k", network)
    assert theirs[0] == ours[metric == "KID"]


def test_statistics_are_downloaded_once(publish, monkeypatch, cache):
    publish(**{FILE: packed(**STATISTICS)})
    found = published_statistics(NAME, INCEPTION)
    np.testing.assert_array_equal(found.statistics.mean, STATISTICS["mu"])
    np.testing.assert_array_equal(found.statistics.covariance, STATISTICS["sigma"])
    assert found.statistics.mean.dtype == np.float64
    assert (found.features, found.num_images, found.source) == (None, None, f"fid:{NAME}")
    gone(monkeypatch)
    again = published_statistics(NAME, INCEPTION)
    np.testing.assert_array_equal(again.statistics.mean, found.statistics.mean)
    assert [path.name for path in cache.iterdir()] == ["published"]


def test_a_fifo_in_the_cache_is_not_waited_for(cache):
    (cache / "published").mkdir(parents=True)
    os.mkfifo(cache / "published" / f"{FILE}.npz")
    with pytest.raises(ValueError, match=f"{FILE}.npz is no regular file"):
        published_statistics(NAME, INCEPTION)


def test_published_features_are_mapped_and_checked(publish, monkeypatch, cache):
    publish(**{FILE: packed(**STATISTICS), f"{FILE}_kid": packed(feats=FEATURES)})
    found = published_statistics(NAME, INCEPTION)
    assert isinstance(found.features, np.memmap)
    np.testing.assert_array_equal(found.features, FEATURES)
    assert found.num_images == 50
    unpacked = cache / "published" / f"{FILE}_kid.npy"
    content = bytearray(unpacked.read_bytes())
    content[-1] ^= 1
    unpacked.write_bytes(content)
    gone(monkeypatch)
    np.testing.assert_array_equal(published_statistics(NAME, INCEPTION).features, FEATURES)


def test_clip_has_statistics_of_its_own(publish):
    publish(**{f"{FILE.replace('clean', 'clean_clip_vit_b_32')}": packed(**STATISTICS)})
    assert published_statistics(NAME, CLIP).source == f"fid:{NAME}"
    with pytest.raises(ValueError, match=f"publishes no {FILE}.npz"):
        published_statistics(NAME, INCEPTION)


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar10/32", "cifar10/32/train/x", "a b/32/train", "../x/y", "//"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"is not of the form fid:NAME/RESOLUTION/SPLIT"):
        published_statistics(name, INCEPTION)


def test_other_networks_are_refused():
    other = SimpleNamespace(name="efficientnet_lite0", dimension=6)
    with pytest.raises(
        ValueError, match=r"of --features inception and clip only, not of efficientnet_lite0"
    ):
        published_statistics(NAME, other)


def damaged():
    content = bytearray(packed(**STATISTICS))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        damaged(),
        packed(mu=STATISTICS["mu"]),
        packed(mu=STATISTICS["mu"][:5], sigma=STATISTICS["sigma"][:5, :5]),
        packed(mu=STATISTICS["mu"] * np.nan, sigma=STATISTICS["sigma"]),
        packed(mu=np.array([None] * 6), sigma=STATISTICS["sigma"]),
    ],
    ids=["damaged", "half", "another network", "not finite", "pickled"],
)  # fmt: skip
def test_a_file_of_something_else_is_never_a_number(publish, content):
    publish(**{FILE: content})
    with pytest.raises(
        ValueError, match=rf"{FILE}\.npz is not a valid statistics file .* delete it"
    ) as caught:
        published_statistics(NAME, INCEPTION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("features", [FEATURES[:, :5], FEATURES[0]])
def test_features_of_something_else_are_refused(publish, features):
    publish(**{FILE: packed(**STATISTICS), f"{FILE}_kid": packed(feats=features)})
    with pytest.raises(ValueError, match=rf"{FILE}_kid\.npz is not a valid statistics file"):
        published_statistics(NAME, INCEPTION)


def test_no_network_is_one_sentence(monkeypatch):
    gone(monkeypatch)
    with pytest.raises(
        ValueError, match=r"could not be downloaded .* a data set of your own"
    ) as caught:
        published_statistics(NAME, INCEPTION)
    assert "\n" not in str(caught.value)


def test_an_interrupted_download_is_begun_anew(serve, monkeypatch, publish):
    content = packed(**STATISTICS)
    monkeypatch.setattr(published, "ADDRESS", serve({f"{FILE}.npz": (content[:200], len(content))}))
    with pytest.raises(ValueError, match="broke off after 200"):
        published_statistics(NAME, INCEPTION)
    publish(**{FILE: content})
    published_statistics(NAME, INCEPTION)
