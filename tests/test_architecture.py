"""The house: imports follow the data, each heavy library has its door, and nobody else owns the five names."""

import ast
import importlib.metadata
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cluster", "curation", "train", "evaluate", "pipeline")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for room in ROOMS for path in ROOT.glob(f"{room}/*.py")
}
DOORS = {
    "ahocorasick": {"curation.metadata"},
    "faiss": {"curation.assign"},
    "mlflow": {"pipeline.tracking"},
    "numba": {"curation.kernels"},
    "triton": {"train.kernels"},
    "submitit": {"cluster.allocation", "cluster.slurm"},
    "torch.distributed.fsdp": {"train.parallel"},
    "ray": {
        "cluster.allocation",
        "cluster.resources",
        "cluster.session",
        "cluster.fanout",
        "train.trainer",
    },
}


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of what a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import: write the full name"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_to_its_left(module: str) -> None:
    room = module.split(".")[0]
    imported = {name.split(".")[0] for name in imports(module)} & set(ROOMS)
    assert imported <= set(ROOMS[: ROOMS.index(room) + 1])


def test_modules_import_each_other_without_cycles() -> None:
    waiting = {module: imports(module) & MODULES.keys() for module in MODULES}
    while waiting:
        free = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these modules are in, or behind, a cycle: {sorted(waiting)}"
        waiting = {module: needs for module, needs in waiting.items() if module not in free}


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_is_imported_only_at_its_door(library: str) -> None:
    users = {module for module in MODULES if any(is_inside(name, library) for name in imports(module))}
    assert users <= DOORS[library]


def is_inside(name: str, library: str) -> bool:
    return name == library or name.startswith(library + ".")


def test_no_other_distribution_owns_a_room() -> None:
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for name, distributions in importlib.metadata.packages_distributions().items():
        owners[name] |= set(distributions)
    assert {room: owners[room] - {"dinotxt"} for room in ROOMS} == {room: set() for room in ROOMS}


def test_rooms_are_flat_and_their_init_holds_only_a_docstring() -> None:
    for room in ROOMS:
        assert not list((ROOT / room).glob("*/*.py"))
        body = ast.parse((ROOT / room / "__init__.py").read_text()).body
        assert len(body) == 1
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))
