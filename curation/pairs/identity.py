"""Identity of a source for the fingerprints of steps, without reading all of its data.

It is the same wherever the same data lie.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.storage import is_remote, kind_of, read_range, size_of
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.kinds import tree_of
from curation.pairs.records import LIST_SUFFIXES

HASHED_WHOLE_BYTES = 64_000_000  # of a larger file, only name and size count
ANNOTATION_SUFFIXES = tuple(suffix for suffix in LIST_SUFFIXES if suffix != ".txt")
SUFFIX_PATTERN = "|".join(map(re.escape, IMAGE_SUFFIXES))
IMAGE_NAME = re.compile(SUFFIX_PATTERN.encode(), re.IGNORECASE)

# A path in a list that starts with / or ../, up to an image's suffix; `[^...]` stops it at the
# quotes and delimiters of lists.
LEADS_OUT = re.compile(
    rb"""(?:\.\./|/)[^"'\t\r\n,;|]*?(?:%s)""" % SUFFIX_PATTERN.encode(), re.IGNORECASE
)


def source_digest(path: Path) -> str:
    """SHA-256 that stands for the data of a source, as hexadecimal text.

    It covers the bytes of a single file below 64 MB. Otherwise, it covers the names and sizes of
    all files, and the bytes of annotation files below 64 MB. A single file that lists images also
    stands for the images below its folder, and for those outside that it names.
    """
    digest = hashlib.sha256()
    is_file = kind_of(path) == "file"
    if is_file and (size := size_of(path)) < HASHED_WHOLE_BYTES:
        content = read_range(str(path), 0, size)
        digest.update(content)
        # A NUL byte means a binary file: what looks like an image's name in it is chance.
        is_list = path.suffix.lower() not in (".tar", ".parquet") and IMAGE_NAME.search(content)
        if not is_list or b"\0" in content:
            return digest.hexdigest()

    tree, only = tree_of(path)
    for name, file in tree.files.items():
        if only and name != only and not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        digest.update(f"{name}\0{file.size}\n".encode())
        if name.lower().endswith(ANNOTATION_SUFFIXES) and file.size < HASHED_WHOLE_BYTES:
            content = file.read()
            digest.update(content)
            folder = Path(os.path.normpath(tree.root / name)).parent
            for outside, size in _outside(content, tree.root, folder):
                digest.update(b"%s\0%d\n" % (outside, size))

    return digest.hexdigest()


def _outside(content: bytes, root: Path, folder: Path) -> Iterator[tuple[bytes, int]]:
    """(name, size) of the images that a list names by a path that leads out of the source."""
    if is_remote(root):
        return
    # Paths stay bytes, as the system knows them: a list may be in any encoding.
    for name in sorted(set(LEADS_OUT.findall(content))):
        path = os.path.normpath(
            os.fsencode(folder) + b"/" + name if not name.startswith(b"/") else name
        )
        if not path.startswith(os.fsencode(root) + b"/") and os.path.isfile(path):
            yield name, os.path.getsize(path)
