"""What makes training stop."""

from pathlib import Path

import pytest

from cluster.endings import StoppedError
from train.interruption import request_stop, stop_on_signal
from train.loop import Job


def test_a_stop_that_ray_reports_as_an_error_of_its_own_is_no_failure(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path, tmp_path, tmp_path)
    request_stop(tmp_path)
    with pytest.raises(StoppedError, match="asked to stop by a signal"), stop_on_signal(job):
        raise SystemError("<cyfunction> with an exception set") from KeyboardInterrupt()
