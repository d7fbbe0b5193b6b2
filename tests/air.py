"""How dense the code of the five packages is: a thermometer that `make lint` prints, not a goal.

Code is read in paragraphs. In admired code bases of this field a function has 5 to 10 blank lines
per 100 lines of code, and a file has 6 to 19 comments.
"""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "curation", "train", "evaluate", "pipeline")
LONG = 100  # characters


def main() -> None:
    print(
        "per 100 lines of code     blank in functions  comments  over 100 characters  tuple "
        "assignments per 1,000"
    )
    everything = Counter[str]()
    for package in PACKAGES:
        counts = sum(
            (measure(path) for path in sorted((ROOT / package).rglob("*.py"))), Counter[str]()
        )
        everything += counts
        print_row(package, counts)
    print_row("all", everything)


def measure(path: Path) -> Counter[str]:
    """Lines of code of a file, and what lies between them; docstrings count as neither."""
    text = path.read_text()
    tree = ast.parse(text)
    docstrings = set[int]()
    functions = set[int]()
    counts = Counter[str]()

    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            counts["tuples"] += isinstance(node.targets[0], ast.Tuple)

    for number, line in enumerate(text.splitlines(), 1):
        if number in docstrings:
            continue
        if not line.strip():
            counts["blank"] += number in functions
        elif line.strip().startswith("#"):
            counts["comments"] += 1
        else:
            counts["code"] += 1
            counts["comments"] += "  # " in line
            counts["long"] += len(line) > LONG
    return counts


def print_row(name: str, counts: Counter[str]) -> None:
    per = 100 / max(1, counts["code"])
    shares = [counts[kind] * per for kind in ("blank", "comments", "long")]
    print(
        f"{name:<25} {shares[0]:>18.1f}  {shares[1]:>8.1f}  {shares[2]:>19.1f}  "
        f"{counts['tuples'] * per * 10:>27.1f}"
    )


if __name__ == "__main__":
    main()
