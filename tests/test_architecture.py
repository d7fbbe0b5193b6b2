"""The house: imports follow the data, each heavy library has its door, and nobody else owns the
five names.
"""

import ast
import importlib.metadata
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cluster", "curation", "train", "evaluate", "pipeline")
FLOORS = {
    "curation": ("pairs", "encoders", "shards", "clusters", "choice", "pictures", "quickstart"),
    "train": ("export",),
    "evaluate": ("sets", "search"),
}
"""The sub-packages of a package, in the order of the data: each imports only those before it."""
SHARED = {"pairs", "encoders", "shards", "report", "config", "embed"}
"""What training and evaluation may import of curation: its data layer, the step embed, its part of
the report.
"""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for room in ROOMS
    for path in ROOT.glob(f"{room}/**/*.py")
}
DOORS = {
    "ahocorasick": {"curation.choice.entries"},
    "faiss": {
        "curation.choice.hashes",
        "curation.clusters.screens",
        "evaluate.search.vector_index",
    },
    "mlflow": {"pipeline.experiments", "pipeline.logged_models", "pipeline.tracking"},
    "numba": {"cluster.compilation", "curation.clusters.search_kernels", "evaluate.windows"},
    "onnxruntime": {"curation.clusters.integers", "train.export.onnx_files"},
    "triton": {"train.attention_kernels", "train.loss_kernels"},
    "submitit": {"cluster.allocation", "cluster.slurm"},
    "torch.distributed.fsdp": {"train.parallel"},
    "ray": {
        "cluster.allocation",
        "cluster.devices",
        "cluster.placement",
        "cluster.servers",
        "cluster.session",
        "cluster.fanout",
        "cluster.network",
        "cluster.ray_jobs",
        "train.interruption",
        "train.train",
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
            # files that travel together in an exported folder find each other there by relative
            # imports alone
            is_shipped = module.startswith("train.export.shipped.")
            assert not node.level or is_shipped, (
                f"{module} has a relative import: write the full name"
            )
            source = f"train.export.shipped.{node.module}" if node.level else str(node.module)
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
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
    users = {
        module for module in MODULES if any(is_inside(name, library) for name in imports(module))
    }
    assert users <= DOORS[library]


def is_inside(name: str, library: str) -> bool:
    return name == library or name.startswith(library + ".")


def test_no_other_distribution_owns_a_room() -> None:
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for name, distributions in importlib.metadata.packages_distributions().items():
        owners[name] |= set(distributions)
    assert {room: owners[room] - {"dinotxt"} for room in ROOMS} == {room: set() for room in ROOMS}


def floor_of(module: str) -> int | None:
    """The place of a module's sub-package in its package's order; None for a module at the top."""
    package, *inside = module.split(".")
    return FLOORS[package].index(inside[0]) if len(inside) > 1 else None


@pytest.mark.parametrize("module", [module for module in MODULES if floor_of(module) is not None])
def test_a_sub_package_imports_only_those_before_it(module: str) -> None:
    package = module.split(".")[0]
    for name in imports(module) & MODULES.keys():
        if name.split(".")[0] == package:
            floor = floor_of(name)
            is_above = package == "curation" if floor is None else floor > floor_of(module)
            assert not is_above, f"{module} imports {name}"


def test_training_and_evaluation_use_only_the_data_layer_of_curation() -> None:
    for module in MODULES:
        if module.split(".")[0] in ("train", "evaluate"):
            used = {
                name.split(".")[1]
                for name in imports(module) & MODULES.keys()
                if name.startswith("curation.")
            }
            assert used <= SHARED, f"{module} imports {used - SHARED} of curation"


def test_every_init_holds_only_a_docstring() -> None:
    folders = {path.parent for path in MODULES.values()}
    for folder in folders:
        tree = ast.parse((folder / "__init__.py").read_text())
        assert len(tree.body) == 1
        assert ast.get_docstring(tree)
