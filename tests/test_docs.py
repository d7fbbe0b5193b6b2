"""The documentation names every module, and only make targets, recipes and benchmarks that
exist.
"""

import os
import re
import subprocess
from pathlib import Path

from pipeline.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
TREE = (ROOT / "docs/architecture.md").read_text().split("## Every file")[1]


def test_the_tree_names_every_module() -> None:
    named = set(re.findall(r"\w+", TREE))
    rooms = ("cluster", "curation", "train", "evaluate", "pipeline")
    modules = {path.stem for room in rooms for path in (ROOT / room).glob("**/*.py")} - {"__init__"}
    assert modules <= named


def test_the_commands_exist() -> None:
    lines = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for line in lines for target in line.split()}
    assert set(re.findall(r"`?make ([a-z][a-z-]+)`?", DOCS)) <= targets
    recipes = set(re.findall(r"python -m pipeline \w+ ([a-z]\w*)(?!\.yaml)\b", DOCS)) - {
        "my",
        "mine",
        "template",
        "check",
    }
    assert recipes <= set(PRESETS)


def test_the_dashboard_of_a_server_is_named() -> None:
    """MLflow takes no address of a server as its store."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://tracking:5000"}
    words = [
        "make",
        "--no-print-directory",
        "--old-file",
        ".venv/ready",
        "mlflow",
        "WORKSPACE=/tmp",
    ]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "the dashboard is http://tracking:5000, as MLFLOW_TRACKING_URI says\n"
