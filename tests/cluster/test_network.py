"""The trial of the network: its arithmetic, and an all-reduce within one machine."""

import pytest

from cluster.network import NUM_BYTES, bus_bandwidth, measure


@pytest.mark.parametrize(("processes", "expected"), [(1, 0.0), (2, 64.0), (4, 96.0)])
def test_each_process_sends_and_receives_nearly_all_of_the_data_twice(
    processes: int, expected: float
) -> None:
    assert bus_bandwidth(64, processes, 1.0) == expected


@pytest.mark.ray
def test_a_session_of_one_node_is_measured(ray_session: None) -> None:
    said = measure()
    assert (said["processes"], said["nodes"], said["backend"]) == (1, 1, "gloo")
    assert said["bytes"] == NUM_BYTES
    assert said["seconds"] > 0
