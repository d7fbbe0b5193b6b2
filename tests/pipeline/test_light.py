"""What only reads answers at once: nothing heavy is imported, measured in a fresh process by what
it holds.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.session import ROOT

HEAVY = (
    "torch",
    "ray",
    "transformers",
    "numba",
    "matplotlib",
    "mlflow",
    "scipy",
    "onnx",
    "faiss",
    "submitit",
)
PROGRAM = """
import contextlib, io, json, sys
from pipeline.__main__ import main

heavy, commands = json.loads(sys.argv[1]), json.loads(sys.argv[2])
imported = {}
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    imported[" ".join(words)] = [code, sorted(set(heavy) & set(sys.modules))]
print(json.dumps(imported))
"""


def imported_by(*commands: list[str]) -> dict[str, list]:
    """By command, run one after the other in one process: its exit code and the heavy modules then
    there.
    """
    words = [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), json.dumps(commands)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_what_only_reads_imports_nothing_heavy(tmp_path: Path) -> None:
    where = ["--workspace", str(tmp_path)]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "1.jpg").touch()
    (pairs / "1.txt").write_text("a cat")
    codes = {
        "recipes": 0,
        "--help": 0,
        "run debug --help": 0,
        "config quickstart": 0,
        "config quickstart --train.optim.lr 0.1": 0,
        "rnu": 2,
        "run quikstart": 2,
        "run debug --only trian": 2,
        "run debug --train.batch-sise 64": 2,
        "status debug": 0,
        "logs debug": 2,
        "cancel debug": 0,
        "cluster template": 0,
        "submit debug --cluster nowhere.yaml": 2,
        "verify debug": 0,
        "export debug --to x --format wrong": 2,
        "plan debug": 0,
        "plan vitl14 --rows 650000000": 0,
        "show debug": 0,
        f"inspect {tmp_path / 'nowhere'}": 2,
        f"inspect {pairs} --embed.source.split val": 0,
    }
    commands = [[*words.split(), *where] for words in codes]
    expected = {
        " ".join(words): [code, []] for words, code in zip(commands, codes.values(), strict=True)
    }
    assert imported_by(*commands) == expected


def test_submitting_imports_submitit_and_no_ray(tmp_path: Path) -> None:
    command = ["submit", "debug", "--dry-run", "--workspace", str(tmp_path)]
    assert imported_by(command) == {" ".join(command): [0, ["submitit"]]}


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("pipeline.execution", {"torch", "ray.train"}),  # a job of the tokenizer needs neither
        ("evaluate.evaluate", {"transformers", "onnx", "scipy.stats", "ray.train"}),
    ],
)
def test_a_process_imports_what_it_computes_with_and_no_more(module: str, unused: set[str]) -> None:
    program = f"import sys, {module}; print(*{unused} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
