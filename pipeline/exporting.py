"""The verb `export`: a model in every format that was asked for, each compared with the model."""

from collections.abc import Mapping, Sequence
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
            raise ValueError(
                f"there is no format {name!r}{nearest(name, FORMATS)}; formats: "
                f"{', '.join(FORMATS)}"
            )


def export_formats(subject: Subject, to: Path, formats: Sequence[str], console: Console) -> int:
    """The exit code; a format that the model cannot have is named, and the others are still
    made.
    """
    table = Table("format", "folder", "differs from the model by at most", box=None)
    code = DONE
    for name in formats or FORMATS:
        try:
            parity = export_format(name, subject, to)["parity"]
            table.add_row(name, str(to / name), differences(parity))
        except ValueError as error:
            code = FAILED
            table.add_row(name, "[red]not made[/red]", escape(str(error)))

    console.print(table)
    return code


def differences(parity: Mapping[str, float]) -> str:
    """The largest difference of the format's features, and that of its int8 forms where it has
    any."""
    exact = [value for what, value in parity.items() if "int8" not in what]
    int8 = [value for what, value in parity.items() if "int8" in what]
    return f"{max(exact):.1e}" + (f" (int8 {max(int8):.1e})" if int8 else "")
