"""Resources against a Ray cluster of one node with three logical CPUs."""

import pytest

from cluster.placement import resolve
from cluster.resources import Resources


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", -1),
        ("cpus", -0.5),
        ("gpus", -1.0),
        ("memory_gb", float("nan")),
        ("min_workers", -1),
    ],
)
def test_resources_refuse_values_without_a_meaning(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"resources\.{field} is {value}: must be at least"):
        Resources(**{field: value})  # type: ignore[arg-type]


def test_fewest_workers_are_at_most_all() -> None:
    with pytest.raises(ValueError, match=r"resources\.min_workers is 3: must be at most"):
        Resources(workers=2, min_workers=3)


@pytest.mark.parametrize(("cpus", "threads"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.9, 2), (16.0, 16)])
def test_threads_are_the_whole_cores_and_at_least_one(cpus: float, threads: int) -> None:
    assert Resources(cpus=cpus).threads == threads


def test_what_a_worker_asks_for_reads_as_people_write_it() -> None:
    assert Resources(workers=4, cpus=2.0, memory_gb=1.5).per_worker() == "2 CPU, 0 GPU, 1.5 GiB"
    assert Resources(gpus=1.0).per_worker() == "0 CPU, 1 GPU"


def test_actor_options_need_a_resolved_number_of_gpus() -> None:
    assert Resources(cpus=2.0, gpus=0.0, memory_gb=0.5).actor_options() == {
        "num_cpus": 2,
        "num_gpus": 0,
        "memory": 2**29,
    }
    with pytest.raises(ValueError, match="resolve"):
        Resources().actor_options()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("asked", "max_workers", "workers"),
    [
        (Resources(), None, 3),
        (Resources(), 2, 2),
        (Resources(), 0, 1),
        (Resources(cpus=1.5), None, 2),
        (Resources(cpus=2.0), 9, 1),
        (Resources(workers=2), 9, 2),
        (Resources(workers=3), 2, 2),
        (Resources(cpus=0.0), None, 3),
        (Resources(cpus=0.0, workers=7), None, 7),
        (Resources(cpus=0.1), None, 3),
        (Resources(workers=8, min_workers=2), None, 3),
    ],
)
def test_resolve_fills_the_cluster_and_no_more(
    asked: Resources, max_workers: int | None, workers: int
) -> None:
    resolved = resolve(asked, max_workers)
    assert (resolved.workers, resolved.gpus) == (workers, 0)
    assert resolve(resolved, max_workers) == resolved


def test_a_worker_with_a_gpu_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": 4.0}} for cpus in (18.0, 64.0)]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    resolved = resolve(Resources())
    assert (resolved.workers, resolved.gpus, resolved.cpus) == (8, 1.0, 4.0)
    assert resolve(Resources(gpus=0.5)).cpus == 2.0
    assert resolve(Resources(cpus=3.0)).cpus == 3.0
    assert resolve(Resources(gpus=0.0)).cpus == 1.0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "asked",
    [
        Resources(cpus=4.0),
        Resources(workers=4),
        Resources(workers=9, min_workers=4),
        Resources(gpus=1.0),
        Resources(memory_gb=1e6),
    ],
)
def test_resolve_refuses_what_ray_would_leave_pending_for_ever(asked: Resources) -> None:
    with pytest.raises(ValueError, match=r"do not fit: the Ray cluster has room for \d"):
        resolve(asked)
