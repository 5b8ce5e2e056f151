"""A short part of `make faults`: a few crash points and damages, chosen by a seed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (".", ("--crashes", "1", "--damages", "16", "--commands", "train vqvae", "encode codes", "assemble", "describe")),
        ("loops.py", ("--minutes", "0.01")),
    ],
    ids=["crashes and damages", "changed files"],
)  # fmt: skip
@pytest.mark.xdist_group("faults")
def test_faults_are_met_well(program, words, root):
    ended = subprocess.run(
        [sys.executable, ROOT / "tests/faults" / program, *words, "--root", root],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"20 faults, 20 met well|arrow: [1-9]\d* changed files, 0 ill", ended.stdout)
