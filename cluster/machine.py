"""What a device computes fast, and so what `auto` stands for in a config.

A field that only makes its step faster is `auto` by default and has metadata such as PRECISION. The
driver measures the device once, before anything runs. A step replaces every `auto` by that choice
before it sends its config to workers, so that all of them compute in the same way. Fingerprints
cover the literal: `auto`, or the value that a user named.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch

AUTO: Literal["auto"] = "auto"
Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
PRECISION = {"chosen_by_machine": "precision"}
"""Metadata of a config field that holds a PrecisionChoice."""

# bfloat16 rounds to less than three digits: it is chosen only if it saves a fifth of the time.
WORTH_IT = 0.8
REPEATS = 3  # of a measurement, of which the shortest counts

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """The properties of a processor or GPU on which choices depend."""

    kind: Literal["cpu", "cuda"]
    name: str
    """The vendor's name; for a processor, also the vector instructions that torch uses."""
    is_fast_in_bfloat16: bool
    """Whether bfloat16 saves enough time on it to be chosen."""
    bfloat16_cost: float | None
    """Measured time of bfloat16 divided by that of float32; None for a GPU, which either supports
    bfloat16 or does not.
    """
    memory_bytes: int
    """Memory of the GPU, or of the machine."""


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for, and why."""

    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


def choose_precision(device: Device) -> Choice:
    """bfloat16 if the device is fast in it, else float32."""
    value = "bfloat16" if device.is_fast_in_bfloat16 else "float32"
    if device.bfloat16_cost is not None:
        return Choice(value, f"{_cost(device.bfloat16_cost)} on {device.name}")
    ability = "supports" if device.is_fast_in_bfloat16 else "does not support"
    return Choice(value, f"the {device.name} {ability} bfloat16")


def _cost(cost: float) -> str:
    if cost < 1:
        return f"bfloat16 takes {cost:.0%} of the time of float32"
    return f"bfloat16 takes {cost:.2g} times as long as float32"


def settle(config: T, choices: Mapping[str, str]) -> T:
    """The config, and the configs in it, with each `auto` replaced by the choice of its kind.

    `choices` has a value per kind of field: {"precision": "float32"}.
    """
    changes: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        kind = item.metadata.get("chosen_by_machine", "")
        if is_dataclass(value):
            changes[item.name] = settle(value, choices)
        elif value == AUTO and kind in choices:
            changes[item.name] = choices[kind]

    return replace(config, **changes)  # type: ignore[type-var]


def settled_precision(choice: PrecisionChoice) -> Precision:
    """The precision of a settled config."""
    assert choice != "auto", "a config must be settled for a device before it is computed with"
    return choice


def chosen_fields(config: object, kind: str, where: str) -> Iterator[tuple[str, str]]:
    """Name and value of every field that holds a choice: ("train.parallel.dtype", "auto").

    Configs in the config are included; `kind` is the kind of choice.
    """
    for item in fields(config):  # type: ignore[arg-type]
        name = f"{where}.{item.name}"
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from chosen_fields(value, kind, name)
        elif item.metadata.get("chosen_by_machine") == kind:
            yield name, value


def holds_precision(config: object) -> bool:
    """Whether a config says in which precision something is computed."""
    return is_dataclass(config) and any(chosen_fields(config, "precision", ""))


def leaves_precision_open(config: object) -> bool:
    """Whether some precision of a config is `auto`."""
    return is_dataclass(config) and any(
        value == AUTO for _, value in chosen_fields(config, "precision", "")
    )


def check_precision(config: object, device: Device, where: str) -> list[str]:
    """A warning for each precision that the user named and that is slow on the device.

    ValueError for a precision that is impossible on it.
    """
    warnings = []
    for name, value in chosen_fields(config, "precision", where):
        if value != "bfloat16" or device.is_fast_in_bfloat16:
            continue
        if device.bfloat16_cost is None:
            raise ValueError(
                f"{name} is bfloat16, which the {device.name} does not support: float32 and auto "
                "are possible here"
            )
        if device.bfloat16_cost > 1:
            warnings.append(
                f"{name} is bfloat16: {_cost(device.bfloat16_cost)} on {device.name}; auto "
                "chooses what is fast"
            )

    return warnings


def measure_device(kind: Literal["cpu", "cuda"]) -> Device:
    """The processor, or the first GPU, of this process. Takes at most half a second of one core."""
    return _this_gpu() if kind == "cuda" else _this_processor()


@cache
def _this_gpu() -> Device:
    import torch

    properties = torch.cuda.get_device_properties(0)

    # Old GPUs emulate bfloat16, which is slower than float32.
    multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device("cuda", properties.name, multiplies, None, properties.total_memory)


@cache
def _this_processor() -> Device:
    """This processor. Many emulate bfloat16, and only a measurement shows how fast it is."""
    import psutil
    import torch

    cost = _bfloat16_cost()
    name = f"{_processor_name()} with {torch.backends.cpu.get_cpu_capability()}"
    return Device("cpu", name, cost < WORTH_IT, cost, psutil.virtual_memory().total)


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "this processor"


def _bfloat16_cost() -> float:
    """Time of bfloat16 divided by that of float32, for the worse of a product and a convolution.

    It is measured on one thread, by the thread's own clock, so that other processes on the machine
    do not count.
    """
    import torch

    # Products and convolutions have kernels of their own, and one choice holds for both. Smaller
    # ones would not show what matrix units such as AMX can do.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)

    try:
        costs = [
            _seconds(work(torch.bfloat16)) / _seconds(work(torch.float32))
            for work in (_product, _convolution)
        ]
    finally:
        torch.set_num_threads(num_threads)

    return max(costs)


def _seconds(work: Callable[[], object]) -> float:
    """Shortest CPU time of this thread for `work`, after one run that is not counted."""
    work()  # compiles kernels and allocates memory
    times = []
    for _ in range(REPEATS):
        started_s = time.thread_time()
        work()
        times.append(time.thread_time() - started_s)
    return max(min(times), 1e-9)


def _product(dtype: "torch.dtype") -> Callable[[], object]:
    """Forward and backward of a linear layer on 128 tokens of 256 channels."""
    import torch

    tokens = torch.ones(128, 256, dtype=dtype, requires_grad=True)
    weight = torch.ones(512, 256, dtype=dtype, requires_grad=True)
    return lambda: torch.nn.functional.linear(tokens, weight).sum().backward()


def _convolution(dtype: "torch.dtype") -> Callable[[], object]:
    """A 3 x 3 convolution on 24 x 24 pixels of 64 channels; backbones are frozen and need no
    backward pass.
    """
    import torch

    pixels = torch.ones(1, 64, 24, 24, dtype=dtype)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype)
    return lambda: torch.nn.functional.conv2d(pixels, weight, padding=1)
