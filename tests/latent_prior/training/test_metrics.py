import json
import math
import os

import pytest
import torch

from latent_prior.options import RunOptions
from latent_prior.processes import start_processes
from latent_prior.training.metrics import MetricsLog, Window, check_finite


@pytest.fixture
def accelerator(fresh_processes):
    return start_processes(cpu_threads=1)


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_window_means_over_its_steps_each_metric_by_its_own_count(accelerator):
    window = Window()
    window.add({"loss": torch.tensor(1.0, requires_grad=True)})
    window.add({"loss": torch.tensor(2.0), "norm": torch.tensor(8.0, dtype=torch.bfloat16)})
    assert window.means(accelerator) == {"loss": 1.5, "norm": 8.0}
    assert not window.sums["loss"].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_named(bad):
    check_finite({"loss": torch.tensor(1.0)}, 3)
    with pytest.raises(ValueError, match=f"step 3: norm is {bad}.*resume from the last checkpoint"):
        check_finite({"loss": torch.tensor(1.0), "norm": torch.tensor(bad)}, 3)


def test_lines_are_appended(accelerator, tmp_path):
    options = RunOptions(output_dir=str(tmp_path), batch_size=8)
    log = MetricsLog(accelerator, tmp_path, options, start=0)
    log.write(3, 1.23456, {"loss": 0.5})
    log.write(4, 2.0, {"psnr": 20.0})
    assert lines(tmp_path) == [
        {"step": 3, "images_seen": 24, "seconds": 1.235, "loss": 0.5},
        {"step": 4, "images_seen": 32, "seconds": 2.0, "psnr": 20.0},
    ]


def test_lines_after_the_checkpoint_and_half_lines_are_dropped(accelerator, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 3, "lo')
    options = RunOptions(output_dir=str(tmp_path))
    MetricsLog(accelerator, tmp_path, options, start=4)
    assert lines(tmp_path) == [{"step": 2}, {"step": 4}]
    MetricsLog(accelerator, tmp_path, options, start=0)
    assert path.read_text() == ""


DAMAGED = [
    b"12", b"[1]", b"null", b'"x"', b'{"step": "x"}', b'{"step": null}', b'{"step": [1]}',
    b'{"step": NaN}', b'{"step": true}', b"\xff\xfe", b"\0" * 300, b"[" * 100_000, b'{"step": 1',
    b'{"step": ' + b"9" * 5000 + b"}", b'{"step": 3, "loss": {}}', b'{"step": 3, "step": 3}',
]  # fmt: skip


def test_lines_that_are_no_metrics_are_left_out_and_told(accelerator, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    options = RunOptions(output_dir=str(tmp_path))
    for line in DAMAGED:
        path.write_bytes(b'{"step": 2}\n' + line + b'\n{"step": 4}\n')
        caplog.clear()
        MetricsLog(accelerator, tmp_path, options, start=4)
        assert lines(tmp_path) == [{"step": 2}, {"step": 4}]
        assert (
            f"{path}: 1 lines that are no metrics are left out, the first is line 2" in caplog.text
        )
    path.chmod(0o400)
    MetricsLog(accelerator, tmp_path, options, start=2).write(3, 0.5, {})
    assert [line["step"] for line in lines(tmp_path)] == [2, 3]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to nothing"])
def test_a_log_that_is_no_file_is_told(accelerator, tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        MetricsLog(accelerator, tmp_path, RunOptions(output_dir=str(tmp_path)), start=0)


def test_a_window_goes_on_from_a_checkpoint_bit_by_bit(accelerator):
    whole, first, second = Window(), Window(), Window()
    values = torch.randn(7, generator=torch.Generator().manual_seed(0))
    for number, value in enumerate(values):
        whole.add({"loss": value})
        (first if number < 4 else second).add({"loss": value})
        if number == 3:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.means(accelerator) == whole.means(accelerator)


def test_a_line_takes_lists_and_sentences_and_warns_of_the_sentences(accelerator, tmp_path, caplog):
    log = MetricsLog(accelerator, tmp_path, RunOptions(output_dir=str(tmp_path)), start=0)
    figures = {"kl": 0.5, "kl_per_dimension": [0.25, 0.25], "warning": "it has collapsed"}
    log.write(7, 1.0, figures)
    assert {name: lines(tmp_path)[0][name] for name in figures} == figures
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "step 7: it has collapsed")
    ]


def test_a_tracker_gets_the_single_numbers_only(accelerator, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = RunOptions(output_dir=str(tmp_path), report_to="tensorboard")
    log = MetricsLog(accelerator, tmp_path, options, start=0)
    log.write(3, 1.0, {"kl": 0.5, "per_dimension": [0.25], "warning": "text", "count": 2})
    log.close()
    events = EventAccumulator(str(tmp_path / "latent-prior"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["count", "kl"]


def test_a_tracker_gets_the_metrics_too(accelerator, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = RunOptions(output_dir=str(tmp_path), report_to="tensorboard", max_seconds=None)
    log = MetricsLog(accelerator, tmp_path, options, start=0)
    log.write(3, 1.0, {"loss": 0.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "latent-prior"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5)]
