"""Files are whole or absent."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.files import append_jsonl, read_jsonl, replacing, sha256_file, write_atomic
from cluster.session import ROOT


@pytest.mark.parametrize("data", [b"", b"\x00\xff", "naïve ⟂\n"])
def test_write_atomic_replaces_the_content(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, "old")
    write_atomic(path, data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert list(tmp_path.iterdir()) == [path]


def fail_half_way(path: Path) -> None:
    path.write_text("half")
    raise KeyError


def test_replacing_keeps_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    write_atomic(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        fail_half_way(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from cluster.files import write_atomic

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
write_atomic(Path(sys.argv[1]), b"x" * 4096)
"""


def test_write_atomic_leaves_nothing_half_written_when_the_device_refuses(tmp_path: Path) -> None:
    """In a process of its own: the limit would hold for this one's output too."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "record.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sha256_file_equals_hashlib(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    write_atomic(tmp_path / "data", data)
    assert sha256_file(tmp_path / "data") == hashlib.sha256(data).hexdigest()


ROWS: list[dict[str, object]] = [
    {"step": 1, "loss": 0.5},
    {"step": 2, "text": 'line\n\u2028 "quoted"'},
    {},
]


def test_jsonl_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, ROWS[0])
    append_jsonl(path, *ROWS[1:])
    assert read_jsonl(path) == ROWS


def test_jsonl_torn_anywhere_loses_only_the_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, *ROWS)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = ROWS[: whole[:size].count(b"\n")]
        assert read_jsonl(path) == complete
        append_jsonl(path, {"step": 3})
        assert read_jsonl(path) == [*complete, {"step": 3}]


def test_jsonl_cuts_a_torn_row_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, ROWS[0])
    with path.open("ab") as file:
        file.write(b'{"text": "' + b"x" * 200_000)
    append_jsonl(path, ROWS[1])
    assert read_jsonl(path) == ROWS[:2]
