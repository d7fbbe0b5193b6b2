"""Phases: results pass unchanged, memory and time of each phase are its own."""

import numpy as np
import pytest

from cluster.fanout import Pool
from cluster.resources import Resources
from curation.choice.phases import Phases
from curation.clusters.scan import InProcess, Points, Scanner
from curation.clusters.vectors import ArrayVectors


@pytest.fixture
def allocate():
    """A function that is sent by value: workers cannot import tests."""

    def allocate(span, points, megabytes):
        return int(np.ones(megabytes << 20, np.uint8)[span[0]])

    return allocate


@pytest.mark.ray
def test_the_memory_of_workers_is_that_of_their_phase(ray_session, allocate):
    with Pool(Scanner, resources=Resources(workers=1, cpus=0.5)) as pool:
        phases = Phases(pool)
        points = Points(ArrayVectors(np.zeros((10, 2), np.float32)), phases)
        for name, megabytes in (("large", 300), ("small", 1)):
            with phases.phase(name):
                assert [result for _, result in points.scan("apply", allocate, megabytes)] == [1]
    assert list(phases.needs) == ["large", "small"]
    assert phases.needs["large"].workers_mb > phases.needs["small"].workers_mb + 200


def test_passes_outside_of_a_phase_and_without_processes(allocate):
    phases = Phases(InProcess())
    points = Points(ArrayVectors(np.zeros((10, 2), np.float32)), phases)
    assert [result for _, result in points.scan("apply", allocate, 1)] == [1]
    with phases.phase("one"):
        assert [result for _, result in points.scan("apply", allocate, 1)] == [1]
    assert phases.needs["one"].workers_mb == 0
