"""The kind of file that a source is: a tar, Parquet, a list, or one that is not read."""

from pathlib import Path

from cluster.storage import kind_of, read_range, size_of
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.ranges import ByteRange
from curation.pairs.records import LIST_SUFFIXES
from curation.pairs.text import as_text, encoding_of
from curation.pairs.tree import Tree, open_tree

COMPRESSED_SUFFIXES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
UNREAD_KINDS = {
    ".arrow": "an Arrow file",
    ".feather": "a Feather file",
    ".xlsx": "a spreadsheet",
    ".xls": "a spreadsheet",
    ".ods": "a spreadsheet",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".npy": "a NumPy file",
    ".npz": "a NumPy file",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".lmdb": "an LMDB file",
    ".mdb": "an LMDB file",
    ".db": "a database",
    ".sqlite": "a database",
    ".tfrecord": "a TFRecord file",
    ".mds": "an MDS shard",
    ".xml": "an XML file",
    ".yaml": "a YAML file",
}
MAGIC = ((b"PAR1", 0, "parquet"), (b"ustar", 257, "tar"))  # (mark, its offset in the file, kind)
READ_KINDS = (
    "a folder, an uncompressed .tar, .parquet, or a list of images and captions as .json, "
    ".jsonl, .ndjson, .csv, .tsv or .txt"
)
HEAD_BYTES = 512


def file_kind(path: Path) -> str:
    """The kind of a file, "tar", "parquet" or "list", by its suffix or else by its first bytes.

    Raises ValueError for any other file.
    """
    suffix = path.suffix.lower()
    if suffix in COMPRESSED_SUFFIXES:
        raise ValueError(f"source {path} is compressed: files are read in place; unpack it first")
    if suffix in (".tar", ".parquet"):
        return suffix[1:]
    if suffix in LIST_SUFFIXES:
        return "list"

    head = read_range(str(path), 0, HEAD_BYTES)
    for mark, offset, kind in MAGIC:
        if head[offset:].startswith(mark):
            return kind

    # A zero byte near the beginning means a binary file, but not behind the mark of UTF-16 or
    # UTF-32, in which every Western letter has one.
    _, mark_bytes = encoding_of(head)
    is_binary = not mark_bytes and b"\0" in head

    if suffix in UNREAD_KINDS or suffix in IMAGE_SUFFIXES or is_binary:
        what = UNREAD_KINDS.get(
            suffix, "an image" if suffix in IMAGE_SUFFIXES else "a binary file of an unknown kind"
        )
        raise ValueError(f"source {path} is {what}, which is not read: give {READ_KINDS}")

    return "list"


def tree_of(path: Path) -> tuple[Tree, str]:
    """(tree to search, name of the file in it). The name is empty for a folder or a tar.

    The tree of a list is that of its folder, because the images are there.
    """
    if kind_of(path) != "file" or _kind_or_list(path) == "tar":
        return open_tree(path), ""
    if _kind_or_list(path) == "parquet":
        name = as_text(path.name)
        return Tree(path, True, {name: ByteRange(str(path), 0, size_of(path))}), name
    return open_tree(path.parent), as_text(path.name)


def _kind_or_list(path: Path) -> str:
    """`file_kind`, or "list" if it raises: an identity is needed before anything is checked."""
    try:
        return file_kind(path)
    except ValueError:
        return "list"
