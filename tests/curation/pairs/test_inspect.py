"""What `inspect` says of a source, and that it needs neither torch nor Ray."""

import subprocess
import sys
from pathlib import Path

from raw_pairs import LAYOUTS

from curation.pairs.config import SourceConfig
from curation.pairs.inspect import inspect_source


def test_a_good_source_shows_its_layout_fields_splits_files_and_first_pairs(images: Path) -> None:
    LAYOUTS["csv"](images)
    text, is_read = inspect_source(images, SourceConfig())
    assert is_read
    for part in (
        "1 list (table)",
        "captions.csv: table, delimited by comma, with header, quoted, utf-8; image 'image', "
        "caption 'caption'",
        "reading train; no row names a split",
        "list 1, part of a pair 3",
        "pairs      3",
        "a.jpg: ",
        "'a cat' (and 1 more)",
        "run        would read it",
    ):
        assert part in text


def test_an_ambiguity_shows_the_candidates_and_the_flag(images: Path) -> None:
    (images / "captions.csv").write_text(
        "image,short_caption,long_caption\na.jpg,a cat,a cat on a mat\n"
    )
    text, is_read = inspect_source(images, SourceConfig())
    assert not is_read
    assert "several caption columns (short_caption, long_caption)" in text
    assert "--embed.source.caption-column" in text
    text, _ = inspect_source(images, SourceConfig(caption_column="long_caption", unread_budget=1.0))
    assert "'a cat on a mat'" in text


def test_neither_torch_nor_ray_is_imported() -> None:
    code = (
        "import sys, curation.pairs.inspect; sys.exit(any(name in sys.modules for name in "
        "('torch', 'ray')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
