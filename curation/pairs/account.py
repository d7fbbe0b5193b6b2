"""The use of every file below a source: read as pairs, part of a pair, a list, or not read."""

import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from curation.pairs.beside import CAPTION_SUFFIXES
from curation.pairs.images import IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES

Use = Literal["read as pairs", "part of a pair", "list", "not read"]
ACCOUNT = "account.json"
"""File of a step's output with `Account.as_json`."""
REJECTS = "rejects.jsonl"
"""File of a step's output: per line, one rejected row ("key") or one unread file ("file")."""
FILES_NAMED = 3
REASONS_NAMED = 4


class FileUse(NamedTuple):
    """The use of one file."""

    use: Use
    reason: str = ""
    """Why it is not read; empty otherwise."""
    is_expected: bool = True
    """Whether a setting, or the kind of the file, is a good reason not to read it. Unexpected files
    count against source.unread_budget.
    """


@dataclass
class Account:
    """Every visible file of a source with its use, and notes on decisions that may surprise."""

    files: dict[str, FileUse] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)
    """By reason, the setting that changes it."""
    notes: list[str] = field(default_factory=list)
    """One sentence per decision that may surprise: joined lists, images outside the source,
    doubtful names.
    """

    def read(self, use: Use, names: Iterable[str]) -> None:
        """Note that these files were read. An earlier use stays, unless it is "not read"."""
        for name in names:
            if name not in self.files or self.files[name].use == "not read":
                self.files[name] = FileUse(use)

    def leave_out(
        self, names: Iterable[str], reason: str, remedy: str = "", *, is_expected: bool = False
    ) -> None:
        """Note that these files were not read, except those that have a use already."""
        if remedy:
            self.remedies[reason] = remedy
        for name in names:
            # The first decision on a file stands.
            self.files.setdefault(name, FileUse("not read", reason, is_expected))

    def note(self, sentence: str) -> None:
        """Note a decision that may surprise, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def unread(self, *, unexpected_only: bool = False) -> dict[str, list[str]]:
        """Names of the files that were not read, by reason; the most frequent reason first."""
        by_reason: dict[str, list[str]] = {}
        for name, use in self.files.items():
            if use.use == "not read" and not (unexpected_only and use.is_expected):
                by_reason.setdefault(use.reason, []).append(name)
        return dict(sorted(by_reason.items(), key=lambda item: -len(item[1])))

    def summary(self) -> dict[str, float]:
        """Number of files per use, for the summary of the step."""
        counts = Counter(use.use for use in self.files.values())
        return {
            "files": float(len(self.files)),
            "files_read_as_pairs": float(counts["read as pairs"]),
            "files_of_pairs": float(counts["part of a pair"]),
            "files_lists": float(counts["list"]),
            "files_not_read": float(counts["not read"]),
        }

    def as_json(self) -> dict[str, Any]:
        """Counts, notes, and reasons with their first files, for the report."""
        unread = self.unread()
        return {
            "counts": self.summary(),
            "notes": self.notes,
            "not_read": {
                reason: {
                    "files": len(names),
                    "first": names[:FILES_NAMED],
                    "remedy": self.remedies.get(reason, ""),
                }
                for reason, names in unread.items()
            },
        }

    def check(self, budget: float) -> None:
        """Raise ValueError when more than a share of `budget` was unexpectedly not read.

        The share is that of the files that look like images or captions.
        """
        # Files that were expected not to be read are in neither number.
        unread = self.unread(unexpected_only=True)
        num_unread = sum(map(len, unread.values()))
        num_read = sum(use.use != "not read" for use in self.files.values())
        share = num_unread / max(1, num_unread + num_read)
        if share <= budget:
            return

        reasons = "; ".join(
            self.describe(reason, names) for reason, names in list(unread.items())[:REASONS_NAMED]
        )
        raise ValueError(
            f"{num_unread} of {num_unread + num_read} files that look like images or captions are "
            f"not read ({share:.1%}, source.unread_budget allows {budget:.1%}): {reasons}. Fix "
            "what is named, or accept it with --embed.source.unread-budget 1; `python -m "
            "pipeline inspect PATH` shows every decision"
        )

    def describe(self, reason: str, names: list[str]) -> str:
        """One reason with its number of files, the first of them, and the remedy."""
        first = ", ".join(names[:FILES_NAMED]) + (", ..." if len(names) > FILES_NAMED else "")
        remedy = self.remedies.get(reason, "")
        return f"{reason}: {len(names)} ({first})" + (f"; {remedy}" if remedy else "")


def looks_like_data(name: str) -> bool:
    """Whether the suffix of a file says that it may be an image or a caption."""
    suffix = posixpath.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in UNREAD_IMAGE_SUFFIXES or suffix in CAPTION_SUFFIXES
