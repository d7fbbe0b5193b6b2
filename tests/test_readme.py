"""The README names every module, every make target and every recipe there is."""

import re
from pathlib import Path

from pipeline.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TREE = README[README.index("## Where things are") : README.index("A finished workspace")]


def test_the_tree_names_every_module() -> None:
    named = set(re.findall(r"\w+", TREE))
    rooms = ("cluster", "curation", "train", "evaluate", "pipeline")
    modules = {path.stem for room in rooms for path in (ROOT / room).glob("*.py")} - {"__init__"}
    assert modules <= named


def test_the_commands_exist() -> None:
    lines = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for line in lines for target in line.split()}
    assert set(re.findall(r"`?make ([a-z][a-z-]+)`?", README)) <= targets
    recipes = set(re.findall(r"python -m pipeline \w+ (\w+)(?!\.yaml)\b", README)) - {"my", "mine"}
    assert recipes <= set(PRESETS)
