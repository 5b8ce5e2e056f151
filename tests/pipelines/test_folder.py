"""What a push leaves in a repository that people edit; the client is a separate process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PUSH = """
import sys
from latent_prior.pipelines import Pipeline
pipe = Pipeline.from_pretrained(sys.argv[1])
for name in ("new", "licensed", "written"):
    print(pipe.push_to_hub(f"tester/{name}"))
pipe.push_to_hub("tester/new")
"""


def test_a_push_brings_the_card_and_leaves_what_somebody_wrote(parts, tmp_path):
    from latent_prior.pipelines import Pipeline

    Pipeline(parts["vqvae"]()).save_pretrained(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "card").mkdir()
    (tmp_path / "pipeline" / "card" / "grid.png").write_bytes(b"picture")
    spec = importlib.util.spec_from_file_location("hub_double", ROOT / "tests" / "hub_double.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = b"---\nlicense: mit\n---\n# My digits\n"
    with module.HubDouble() as hub:
        hub.repos["models", "tester/licensed"] = {"README.md": b"---\nlicense: cc0-1.0\n---\n"}
        hub.repos["models", "tester/written"] = {"README.md": own}
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(tmp_path / "pipeline")],
            env={**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(tmp_path / "home")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{hub.url}/tester/new/commit/" in done.stdout
        new, licensed, written = (
            hub.repos["models", f"tester/{name}"] for name in ("new", "licensed", "written")
        )
    assert written["README.md"] == own
    assert b"license: cc0-1.0\n" in licensed["README.md"]
    assert b"license:" not in new["README.md"]
    for repository in (new, licensed):
        assert b"# VQVAE" in repository["README.md"]
    for repository in (new, licensed, written):
        assert repository["card/grid.png"] == b"picture"
        assert "autoencoder/model.safetensors" in repository
