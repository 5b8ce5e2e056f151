import http.server
import threading
import warnings

import pytest
import torch
from torch import nn


class TinyFeatures(nn.Module):
    """A small random network with the interface of a TorchScript feature network."""

    def __init__(self, dimension: int = 12):
        super().__init__()
        self.convolution = nn.Conv2d(3, dimension, 23, stride=12)

    def forward(self, images):
        return torch.relu(10 * self.convolution(images / 128 - 1)).mean((2, 3))


def save_scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated since torch 2.14
        torch.jit.script(module.eval()).save(str(path))
    return path


@pytest.fixture(scope="session")
def scripted_features(tmp_path_factory):
    """Path of a TorchScript feature network."""
    torch.manual_seed(0)
    return save_scripted(TinyFeatures(), tmp_path_factory.mktemp("network") / "tiny.pt")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache folder, which does not exist yet."""
    folder = tmp_path_factory.mktemp("user") / "cache"
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(folder))
    return folder


@pytest.fixture
def serve():
    """Serve files on localhost, name -> (content, promised length); returns the folder's URL."""
    servers = []

    def start(files):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path[1:] not in files:
                    self.send_error(404)
                    return
                body, length = files[self.path[1:]]
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format, *arguments):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
