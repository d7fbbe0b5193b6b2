"""The devices of a Ray session's workers."""

from dataclasses import dataclass, field

import pytest

from cluster.devices import device_of, precision_choice, settled, slow_choices
from cluster.machine import AUTO, PRECISION, PrecisionChoice, choose_precision, measure_device
from cluster.resources import Resources

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Config:
    precision: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    resources: Resources = Resources(gpus=0.0)


def test_workers_of_a_local_session_compute_on_this_processor(ray_session: None) -> None:
    device = device_of(Resources(gpus=0.0))
    assert device is measure_device("cpu")
    assert (
        settled(Config(), Resources(gpus=0.0)).precision
        == choose_precision(device).value
        == precision_choice(Config()).value
    )


def test_a_named_precision_is_left_alone() -> None:
    assert settled(Config("float32"), Resources(gpus=0.0)) == Config("float32")
    assert precision_choice(Config("float32")) is None
    assert slow_choices(Config("float32"), "embed") == []


def test_configs_without_precision_are_not_asked() -> None:
    assert precision_choice(Resources()) is None
    assert slow_choices(Resources(), "curate") == []
    assert precision_choice(None) is None


def test_gpus_that_the_session_lacks_are_refused(ray_session: None) -> None:
    with pytest.raises(ValueError, match="no node of this Ray session has a GPU"):
        device_of(Resources(gpus=1.0))
