"""What the devices of a run compute fast, and with it the meaning of `auto` in a config.

A field that only makes its step faster is `auto` by default and carries metadata such as PRECISION.
The driver measures the device once, before anything runs; a step replaces every `auto` by that
choice before it hands its config to workers, so that all of them compute alike. Fingerprints cover
the literal: `auto`, or the value that a user named.
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
"""Metadata of a config's field that holds a PrecisionChoice."""

WORTH_IT = (
    0.8  # bfloat16 rounds to three digits: it is chosen where it saves at least a fifth of the time
)
REPEATS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """A processor or GPU, as far as choices depend on it."""

    kind: Literal["cpu", "cuda"]
    name: str
    """As its maker calls it; of a processor also the vector instructions that torch uses."""
    is_fast_in_bfloat16: bool
    """Whether bfloat16 is worth its rounding here."""
    bfloat16_cost: float | None
    """Time of bfloat16 over time of float32, measured; None on a GPU, which either multiplies
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
    """bfloat16 where the device is fast in it, else float32."""
    value = "bfloat16" if device.is_fast_in_bfloat16 else "float32"
    if device.bfloat16_cost is not None:
        return Choice(value, f"{_cost(device.bfloat16_cost)} on {device.name}")
    ability = "multiplies" if device.is_fast_in_bfloat16 else "cannot multiply"
    return Choice(value, f"the {device.name} {ability} bfloat16")


def _cost(cost: float) -> str:
    if cost < 1:
        return f"bfloat16 takes {cost:.0%} of the time of float32"
    return f"bfloat16 takes {cost:.2g} times as long as float32"


def settle(config: T, choices: Mapping[str, str]) -> T:
    """The config with each `auto` of these kinds replaced, in nested configs too: {"precision":
    "float32"}.
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
    """The precision of a config that is settled."""
    assert choice != "auto", "a config must be settled for a device before it is computed with"
    return choice


def chosen_fields(config: object, kind: str, where: str) -> Iterator[tuple[str, str]]:
    """Name and value of every field of a config that holds a choice of this kind:
    ("train.parallel.dtype", "auto").
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
    """A warning for each precision that the user named and that is slow here. ValueError for one
    that is impossible.
    """
    warnings = []
    for name, value in chosen_fields(config, "precision", where):
        if value != "bfloat16" or device.is_fast_in_bfloat16:
            continue
        if device.bfloat16_cost is None:
            raise ValueError(
                f"{name} is bfloat16, which the {device.name} cannot multiply: float32 and auto "
                "are possible here"
            )
        if device.bfloat16_cost > 1:
            warnings.append(
                f"{name} is bfloat16: {_cost(device.bfloat16_cost)} on {device.name}; auto "
                "chooses what is fast"
            )

    return warnings


def measure_device(kind: Literal["cpu", "cuda"]) -> Device:
    """The processor, or the first GPU, of this process. Takes half a second of one processor at
    most.
    """
    return _this_gpu() if kind == "cuda" else _this_processor()


@cache
def _this_gpu() -> Device:
    import torch

    properties = torch.cuda.get_device_properties(0)
    multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device("cuda", properties.name, multiplies, None, properties.total_memory)


@cache
def _this_processor() -> Device:
    """Processors emulate what they have no instructions for, and so do ours for bfloat16: only a
    clock tells.
    """
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
    """Time of bfloat16 over time of float32 on this processor, for whichever of a product and a
    convolution loses more.

    On one thread and by its own clock, so that what else runs on the machine does not count.
    """
    import torch

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


def _seconds(work: Callable[[], None]) -> float:
    """Shortest time of this thread for some work, after a first time that makes its kernels."""
    work()
    times = []
    for _ in range(REPEATS):
        started_s = time.thread_time()
        work()
        times.append(time.thread_time() - started_s)
    return max(min(times), 1e-9)


def _product(dtype: "torch.dtype") -> Callable[[], None]:
    """Forward and backward of a linear layer on 64 tokens of 256 channels."""
    import torch

    tokens = torch.ones(64, 256, dtype=dtype, requires_grad=True)
    weight = torch.ones(512, 256, dtype=dtype, requires_grad=True)
    return lambda: torch.nn.functional.linear(tokens, weight).sum().backward()


def _convolution(dtype: "torch.dtype") -> Callable[[], None]:
    """Forward and backward of a 3 x 3 convolution on 20 x 20 pixels of 32 channels."""
    import torch

    pixels = torch.ones(1, 32, 20, 20, dtype=dtype, requires_grad=True)
    weight = torch.ones(32, 32, 3, 3, dtype=dtype, requires_grad=True)
    return lambda: torch.nn.functional.conv2d(pixels, weight, padding=1).sum().backward()
