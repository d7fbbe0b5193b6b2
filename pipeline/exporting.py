"""The verb `export`: a model in each requested format, compared with the original."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.endings import DONE, FAILED
from train.export.formats import FORMATS, export_format
from train.export.subject import Subject


def export_formats(subject: Subject, to: Path, formats: Sequence[str], console: Console) -> int:
    """Write each format and print a table; returns the exit code.

    A format that fails is listed with the reason, and the others are still written.
    """
    table = Table("format", "folder", "differs from the model by at most", box=None)
    code = DONE
    for name in formats or FORMATS:
        try:
            parity = export_format(name, subject, to)["parity"]
            table.add_row(name, str(to / name), differences(parity))
        except ValueError as error:  # this model cannot have the format, or the export differs
            code = FAILED
            table.add_row(name, "[red]not made[/red]", escape(str(error)))

    console.print(table)
    return code


def differences(parity: Mapping[str, float]) -> str:
    """The largest difference of the format's features, and of its int8 forms if it has any."""
    exact = [value for what, value in parity.items() if "int8" not in what]
    int8 = [value for what, value in parity.items() if "int8" in what]
    return f"{max(exact):.1e}" + (f" (int8 {max(int8):.1e})" if int8 else "")
