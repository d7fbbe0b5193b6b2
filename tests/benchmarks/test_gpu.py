"""The command for GPUs, with tiny sizes on the CPU: parts are kept, and failures are results."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import GpuConfig, main, table


def test_finished_parts_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    calls: list[str] = []

    def fail(config: GpuConfig) -> gpu.Result:
        calls.append("fails")
        raise RuntimeError("out of memory")

    def work(config: GpuConfig) -> gpu.Result:
        calls.append("works")
        return {"pairs/s": 3323.0}

    monkeypatch.setitem(gpu.PARTS, "works", work)
    monkeypatch.setitem(gpu.PARTS, "fails", fail)
    config = GpuConfig(out, parts=("fails", "works"), tiny=True)
    assert main(config) == 1
    assert main(config) == 1
    assert calls == ["fails", "works", "fails"]

    parts = json.loads(out.read_text())["parts"]
    assert parts["works"]["pairs/s"] == 3323
    assert parts["fails"]["error"] == "RuntimeError: out of memory"
    assert "| works | pairs/s | 3,323 |" in table(parts)


def test_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match="there is no part 'lose': the parts are tests, step, loss"
    ):
        main(GpuConfig(tmp_path / "gpu.json", parts=("lose",), tiny=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert (
        main(GpuConfig(out, parts=("step", "loss", "attention", "embed", "kmeans"), tiny=True)) == 0
    )
    parts = json.loads(out.read_text())["parts"]
    assert parts["step"]["ours, 2 pairs: pairs/s"] > 0
    assert parts["loss"]["ours float32: ms"] > 0
    assert parts["attention"]["ours: ms"] > 0
    assert parts["embed"]["backbone: images/s"] > 0
    assert parts["kmeans"]["ours, exact labels: s per pass"] > 0
