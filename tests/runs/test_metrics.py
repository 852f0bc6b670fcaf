"""Lines of metrics.jsonl are written whole or not at all."""

import resource

import pytest

from jaxlm.runs.metrics import METRICS_FILE, append_metrics, read_metrics


def test_a_line_that_was_cut_off_is_written_again(tmp_path):
    rows = [{"step": step, "train_loss": 1.0 / step} for step in range(1, 4)]
    append_metrics(tmp_path, rows[:1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / METRICS_FILE).stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append_metrics(tmp_path, rows[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_metrics(tmp_path, rows[1:])
    assert read_metrics(tmp_path) == rows
