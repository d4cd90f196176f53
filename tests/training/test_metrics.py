"""The log reads back bit for bit, a resumed one is cut where it has to be, and nothing imports TensorFlow."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.files import read_json_lines
from flanjax.training.metrics import MetricsError, MetricsLog, Window, draw_losses
from flanjax.training.step import StepMetrics


def write(folder, lines, **options):
    with MetricsLog(folder, **options) as log:
        for step, split in lines:
            log.add(step, split, {"loss": step / 3}, seconds=0.5)


def steps(folder):
    return [(line["step"], line["split"]) for line in read_json_lines(folder / "metrics.jsonl")]


@settings(max_examples=50, deadline=None)
@given(value=st.floats(width=64, allow_nan=False))
def test_a_number_reads_back_as_the_same_float(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("log")
    with MetricsLog(folder) as log:
        log.add(1, "train", {"loss": value}, seconds=1.0)
    (line,) = read_json_lines(folder / "metrics.jsonl")
    assert line["values"]["loss"] == value
    assert math.copysign(1, line["values"]["loss"]) == math.copysign(1, value)
    assert line == {"step": 1, "split": "train", "values": {"loss": value}, "seconds": 1.0}


def test_a_loss_that_is_not_finite_is_written_as_it_is(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.add(1, "train", {"loss": math.nan, "grad_norm": math.inf})
        log.plot(last=True)
    (line,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(line["values"]["loss"])
    assert line["values"]["grad_norm"] == math.inf
    assert (tmp_path / "loss.png").is_file()


def test_a_resumed_log_is_cut_where_it_will_go_on(tmp_path):
    write(tmp_path, [(3, "train"), (4, "validation"), (6, "train"), (8, "validation"), (9, "train")])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write(tmp_path, [], logged=6, evaluated=8)
    assert steps(tmp_path) == [(3, "train"), (4, "validation"), (6, "train"), (8, "validation")]
    # What is kept is kept to the byte.
    assert before.startswith((tmp_path / "metrics.jsonl").read_bytes())
    write(tmp_path, [(8, "validation")], logged=6, evaluated=4)
    assert steps(tmp_path) == [(3, "train"), (4, "validation"), (6, "train"), (8, "validation")]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    write(tmp_path, [(1, "train"), (2, "train")])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    write(tmp_path, [(2, "train")], logged=2)
    assert steps(tmp_path) == [(1, "train"), (2, "train")]


def test_a_run_that_starts_anew_starts_its_log_anew(tmp_path):
    write(tmp_path, [(0, "validation"), (1, "train")])
    write(tmp_path, [(1, "train")])
    assert steps(tmp_path) == [(1, "train")]


def test_nothing_is_written_before_the_first_line_or_on_other_hosts(tmp_path):
    with MetricsLog(tmp_path / "run"):
        pass
    with MetricsLog(tmp_path / "run", write=False) as log:
        log.add(1, "train", {"loss": 1.0})
        log.plot(last=True)
    assert not (tmp_path / "run").exists()


def write_to_a_full_disk(folder):
    with MetricsLog(folder) as log:
        log.add(1, "train", {"loss": 1.0})
        log._file = Path("/dev/full").open("w")  # noqa: SIM115 - the log closes it
        log.add(2, "train", {"loss": 1.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_explained_though_closing_fails_again(tmp_path):
    with pytest.raises(MetricsError, match=r"disk is full.*same command again"):
        write_to_a_full_disk(tmp_path)
    with MetricsLog(tmp_path) as log:
        log.add(1, "train", {"loss": 1.0})
    assert steps(tmp_path) == [(1, "train")]


def test_tensorboard_reads_the_events_and_forgets_what_a_kill_made_void(tmp_path):
    write(tmp_path, [(1, "train"), (2, "train"), (3, "train")])
    write(tmp_path, [(2, "train")], logged=1)
    code = (
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        f"events = EventAccumulator({str(tmp_path / 'tensorboard')!r}); events.Reload()\n"
        "print([(e.step, round(e.value, 4)) for e in events.Scalars('train/loss')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[(1, 0.3333), (2, 0.6667)]"


def test_the_plot_is_drawn_from_training_and_evaluations(tmp_path):
    lines = [{"step": s, "split": "train", "values": {"loss": 5 / (s + 1)}} for s in range(20)]
    lines += [{"step": 10, "split": "validation", "values": {"loss": 1.0}}]
    lines += [{"step": 10, "split": "other", "values": {"exact_match": 1.0}}]
    draw_losses(lines, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def metrics(**values):
    given = dict.fromkeys(StepMetrics._fields, 1.0) | values
    return StepMetrics(**given)


def test_a_window_means_over_tokens_not_over_steps():
    window = Window()
    window.add(metrics(loss=11.0, z_loss=1.0, tokens=10.0, correct=5.0, grad_norm=2.0, learning_rate=0.1))
    window.add(metrics(loss=1.0, z_loss=0.0, tokens=30.0, correct=5.0, grad_norm=4.0, learning_rate=0.2))
    values = window.values()
    assert values["loss"] == pytest.approx(11 / 40)
    assert values["z_loss"] == pytest.approx(1 / 40)
    assert values["token_accuracy"] == pytest.approx(10 / 40)
    assert (values["grad_norm"], values["learning_rate"], values["target_tokens"]) == (3.0, 0.2, 40.0)


def test_a_window_outlives_json():
    window = Window()
    window.add(metrics(loss=0.1))
    window.add(metrics(loss=0.2))
    again = Window(**json.loads(json.dumps({"steps": window.steps, "sums": window.sums})))
    assert again == window


def test_training_imports_no_tensorflow():
    code = (
        "import sys\n"
        "import flanjax.training.trainer\n"
        "from flanjax.training.metrics import MetricsLog\n"
        "import tempfile; from pathlib import Path\n"
        "with MetricsLog(Path(tempfile.mkdtemp())) as log:\n"
        "    log.add(1, 'train', {'loss': 1.0}); log.plot(last=True)\n"
        "bad = {'tensorflow', 'seqio', 'clu', 'gin'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
