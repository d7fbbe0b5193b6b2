"""The verb `export`: a model folder in every format that was asked for, each compared with the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.endings import DONE, FAILED
from cluster.files import sha256_file
from cluster.words import nearest
from train.export.formats import FORMATS, export_format, read_model


def export_formats(folder: Path, source: Mapping[str, str], to: Path, formats: Sequence[str], console: Console) -> int:
    """The exit code; a format that the model cannot have is named, and the others are still made.

    `source` says where the model comes from; empty, the sha256 of its weights does.
    """
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"there is no format {name!r}{nearest(name, FORMATS)}; formats: {', '.join(FORMATS)}")
    loaded = read_model(folder)
    weights = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".pth"))
    source = source or {path.name: sha256_file(path) for path in weights}

    table = Table("format", "folder", "differs from the model by at most", box=None)
    code = DONE
    for name in formats or FORMATS:
        try:
            parity = export_format(name, loaded, to, source)["parity"]
            differences = "  ".join(f"{kind} {value:.1e}" for kind, value in parity.items())
            table.add_row(name, str(to / name), differences)
        except ValueError as error:
            code = FAILED
            table.add_row(name, "[red]not made[/red]", escape(str(error)))
    console.print(table)
    return code
