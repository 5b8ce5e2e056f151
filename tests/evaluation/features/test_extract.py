import threading
from types import SimpleNamespace

import numpy as np
import pytest

from latent_prior.evaluation.features.extract import stream
from latent_prior.evaluation.features.networks import load_network
from latent_prior.processes import share


class Noise:
    """A set of images of two shapes, one of which may be unreadable."""

    name = "noise"

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 1000

    def arrays(self, positions):
        if self.broken in positions:
            raise ValueError(f"{self.broken}.png cannot be read")
        return [
            np.random.default_rng(i).integers(0, 256, (20 + i % 2, 20, 3), np.uint8)
            for i in positions
        ]


@pytest.fixture(scope="module")
def network(scripted_features):
    return load_network(str(scripted_features))


ALONE = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)


def test_a_stream_gives_the_features_of_every_batch_in_order(network):
    batches = share(11, 4, ALONE)
    found = list(stream(network, Noise(), batches, ALONE))
    assert [len(features) for features in found] == [4, 4, 3]
    for batch, features in zip(batches, found, strict=True):
        np.testing.assert_array_equal(features, network(Noise().arrays(batch)))


def test_what_cannot_be_read_ahead_is_named_where_it_is_needed(network):
    features = stream(network, Noise(broken=9), share(11, 4, ALONE), ALONE)
    assert len(next(features)) == len(next(features)) == 4
    with pytest.raises(ValueError, match=r"9\.png cannot be read"):
        next(features)


def test_a_stream_that_is_left_ends_its_thread(network):
    features = stream(network, Noise(), share(400, 4, ALONE), ALONE)
    next(features)
    assert [thread for thread in threading.enumerate() if "prefetch" in thread.name]
    features.close()
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]
