"""What a job asks for has room for its workers, the driver, Ray and Ray's object store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs import BESIDE_GB, Ask, NodeKind, ask_of, largest
from cluster.resources import OBJECT_STORE_SHARE, Resources
from cluster.site import JobConfig

NODE = NodeKind(cpus=16, memory_mb=64_000, gpus=4)


@given(st.integers(1, 64), st.floats(0.1, 100.0), st.integers(1, 8))
def test_ray_has_room_for_the_workers_of_every_node(
    workers: int, memory_gb: float, nodes: int
) -> None:
    """Ray offers what the job has but for the object store; all workers of a node must fit in it."""
    resources = Resources(workers=workers, cpus=1.0, memory_gb=memory_gb)
    ask = ask_of(resources, JobConfig(nodes=nodes), NODE, "train")
    offered_gb = ask.memory_mb / 1024 * (1 - OBJECT_STORE_SHARE)
    on_one_node = -(-workers // nodes)
    assert offered_gb >= on_one_node * memory_gb + BESIDE_GB
    assert ask.cpus >= on_one_node


def test_memory_that_nobody_names_is_the_share_of_the_cores() -> None:
    half = ask_of(Resources(workers=8, cpus=1.0), JobConfig(), NODE, "embed")
    assert half.memory_mb == NODE.memory_mb // 2


def test_a_single_worker_asks_for_what_the_driver_and_ray_need() -> None:
    tiny = NodeKind(cpus=64, memory_mb=64_000)
    ask = ask_of(Resources(workers=1), JobConfig(), tiny, "tokenizer")
    assert ask.memory_mb == 3414  # (1 + 2) GiB / 0.9, not one core's 1,000 MB


def test_a_step_without_a_number_of_workers_takes_whole_nodes() -> None:
    ask = ask_of(Resources(gpus=1.0), JobConfig(nodes=2, time_min=30), NODE, "train")
    assert ask == Ask(nodes=2, cpus=0, memory_mb=0, gpus=4, time_min=30)


@pytest.mark.parametrize(
    ("site", "what"),
    [(JobConfig(cpus=2), "cpus 2"), (JobConfig(cpus=4, memory_gb=10.0), "memory_gb 10")],
)
def test_a_site_that_gives_less_than_the_workers_need_is_refused(
    site: JobConfig, what: str
) -> None:
    with pytest.raises(ValueError, match=f"gives the job of embed {what} per node"):
        ask_of(Resources(workers=4, cpus=1.0, memory_gb=2.0), site, NODE, "embed")


def test_one_allocation_has_room_for_every_job() -> None:
    asks = [Ask(1, 8, 4000, 0, 30), Ask(2, 4, 9000, 2, 60)]
    assert largest(asks) == Ask(2, 8, 9000, 2, 60)
    assert largest([*asks, Ask(1, 0, 0, 0, 10)]).cpus == 0
