"""Choices of the machine: what they depend on, what they replace, what they refuse. No test depends
on this machine.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch

from cluster.machine import (
    AUTO,
    PRECISION,
    Device,
    PrecisionChoice,
    check_precision,
    choose_precision,
    holds_precision,
    leaves_precision_open,
    measure_device,
    settle,
    settled_precision,
)
from cluster.resources import Resources

FAST = Device(
    "cpu", "Zen 5 with AVX512", is_fast_in_bfloat16=True, bfloat16_cost=0.5, memory_bytes=1
)
SLOW = Device(
    "cpu", "EPYC with AVX2", is_fast_in_bfloat16=False, bfloat16_cost=19.4, memory_bytes=1
)
OLD_GPU = Device("cuda", "Tesla T4", is_fast_in_bfloat16=False, bfloat16_cost=None, memory_bytes=1)
NEW_GPU = replace(OLD_GPU, name="NVIDIA H100", is_fast_in_bfloat16=True)


@dataclass(frozen=True)
class Inner:
    dtype: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    name: str = AUTO
    """No choice of the machine, though its value is the same word."""


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    precision: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    resources: Resources = Resources()


@pytest.mark.parametrize(
    ("device", "precision"),
    [(FAST, "bfloat16"), (SLOW, "float32"), (OLD_GPU, "float32"), (NEW_GPU, "bfloat16")],
)
def test_precision_follows_the_device(device: Device, precision: str) -> None:
    assert choose_precision(device).value == precision


def test_the_reason_has_the_factor_and_the_device() -> None:
    assert (
        str(choose_precision(SLOW))
        == "float32 (bfloat16 takes 19 times as long as float32 on EPYC with AVX2)"
    )
    assert (
        choose_precision(FAST).reason
        == "bfloat16 takes 50% of the time of float32 on Zen 5 with AVX512"
    )
    assert choose_precision(OLD_GPU).reason == "the Tesla T4 does not support bfloat16"


def test_settling_replaces_auto_in_nested_configs_and_nothing_else() -> None:
    config = Outer(Inner("bfloat16"), resources=Resources(workers=2))
    settled = settle(config, {"precision": "float32"})

    assert settled == replace(config, precision="float32")
    assert settle(Outer(), {"precision": "float32"}).inner == Inner("float32", AUTO)
    assert settle(Outer(), {"engine": "int8"}) == Outer()


def test_a_config_is_open_until_it_is_settled() -> None:
    assert leaves_precision_open(Outer())
    assert not leaves_precision_open(settle(Outer(), {"precision": "float32"}))
    assert holds_precision(Outer())
    assert not holds_precision(Resources())


def test_a_precision_that_is_not_settled_is_never_computed_with() -> None:
    assert settled_precision("bfloat16") == "bfloat16"
    with pytest.raises(AssertionError, match="settled"):
        settled_precision("auto")


def test_a_named_precision_that_is_slow_warns_with_its_field_and_the_factor() -> None:
    (warning,) = check_precision(Outer(Inner("bfloat16")), SLOW, "train")
    assert "train.inner.dtype is bfloat16: bfloat16 takes 19 times as long as float32" in warning

    assert check_precision(Outer(Inner("bfloat16")), FAST, "train") == []
    assert check_precision(Outer(Inner("float32"), "float32"), SLOW, "train") == []
    assert check_precision(Outer(), SLOW, "train") == []


def test_a_named_precision_that_a_gpu_lacks_is_refused_with_what_is_possible() -> None:
    with pytest.raises(
        ValueError, match=r"train\.precision is bfloat16, which the Tesla T4 .* float32 and auto"
    ):
        check_precision(Outer(precision="bfloat16"), OLD_GPU, "train")


def test_measuring_leaves_the_threads_of_this_process_alone() -> None:
    before = torch.get_num_threads()
    device = measure_device("cpu")

    assert torch.get_num_threads() == before
    assert device.kind == "cpu"
    assert device.bfloat16_cost > 0
    assert measure_device("cpu") is device  # measured once per process
