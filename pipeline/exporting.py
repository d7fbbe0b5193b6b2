"""The verb `export`: a model in every format that was asked for, each compared with the model."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.endings import DONE, FAILED
from cluster.words import nearest
from train.export.formats import FORMATS, export_format
from train.export.subject import Subject


def check_formats(formats: Sequence[str]) -> None:
    """ValueError for a format that is not known."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"there is no format {name!r}{nearest(name, FORMATS)}; formats: {', '.join(FORMATS)}")


def export_formats(subject: Subject, to: Path, formats: Sequence[str], console: Console) -> int:
    """The exit code; a format that the model cannot have is named, and the others are still made."""
    table = Table("format", "folder", "differs from the model by at most", box=None)
    code = DONE
    for name in formats or FORMATS:
        try:
            parity = export_format(name, subject, to)["parity"]
            table.add_row(name, str(to / name), f"{max(parity.values()):.1e}")
        except ValueError as error:
            code = FAILED
            table.add_row(name, "[red]not made[/red]", escape(str(error)))

    console.print(table)
    return code
