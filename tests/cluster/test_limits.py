"""SLURM's way to write limits."""

import pytest

from cluster.limits import _tres, count_gpus, minutes


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1:00:00", 60), ("2-12:00:00", 3600), ("30:30", 30.5), ("infinite", float("inf"))],
)
def test_minutes_reads_slurms_time_limits(limit: str, expected: float) -> None:
    assert minutes(limit) == expected


@pytest.mark.parametrize(
    ("generic", "gpus"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8(S:0-1)", 8),
        ("shard:gpu:6,gpu:a100:2(S:0),gpu:t4:1", 3),
        ("gpu", 0),
    ],
)
def test_gpus_are_counted_among_slurms_generic_resources(generic: str, gpus: int) -> None:
    assert count_gpus(generic) == gpus


def test_tres_are_read_with_their_units() -> None:
    assert _tres("cpu=4,mem=8G,gres/gpu=2") == {"cpu": 4, "mem": 8192, "gres/gpu": 2}
    assert _tres("mem=500M,node=3,mem=1T") == {"mem": 1024**2, "node": 3}
    assert _tres("") == {}
