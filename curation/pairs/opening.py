"""Opening a source: the decision for each file, to be read or to be left out for a reason.

A file is read as pairs, as part of a pair, or as a list. Layouts may lie side by side. The decision
reads only names, lists, Parquet footers and the first members of tars.
"""

import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cluster.storage import size_of
from curation.pairs.account import Account, looks_like_data
from curation.pairs.beside import CAPTION_SUFFIXES, TEXT_SUFFIXES, caption_files, caption_kind
from curation.pairs.candidates import HEAD_BYTES, NAMES_NO_IMAGE, cannot_be_list, is_document
from curation.pairs.config import SourceConfig, SourceFormat
from curation.pairs.fields import FieldsError
from curation.pairs.images import IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES
from curation.pairs.kinds import COMPRESSED_SUFFIXES, UNREAD_KINDS
from curation.pairs.lists import ListedPairs, listed_pairs
from curation.pairs.parquet import ParquetFile, image_paths, open_parquet, parquet_parts
from curation.pairs.ranges import ByteRange
from curation.pairs.records import LIST_SUFFIXES, CaptionList, NoList, is_named_as_list, read_list
from curation.pairs.sample import Pair, Part, parts_of_pairs
from curation.pairs.splits import Splits, has_split_folders
from curation.pairs.tars import check_tar_end, peek, tar_members
from curation.pairs.tree import Tree
from curation.pairs.webdataset import (
    PEEKED_MEMBERS,
    is_webdataset,
    lies_apart,
    tar_parts,
    unsorted_pairs,
)

MOST_LISTS = 256
AT_ONCE = 32  # threads that wait for storage
READS: dict[str, tuple[SourceFormat, ...]] = {
    "webdataset": ("auto", "webdataset"),
    "parquet": ("auto", "parquet"),
    "list": ("auto", "folder", "list", "karpathy", "coco"),
    "text": ("auto", "folder", "text"),
}
"""Settings of source.format under which each kind of pairs is read."""


@dataclass
class Source:
    """An opened source: what will be read, and the account of every file."""

    path: Path
    parts: list[Part] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    lists: list[CaptionList] = field(default_factory=list)
    tables: list[ParquetFile] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    """Names of the WebDataset tars."""
    num_beside: int = 0
    """Images with caption files beside them."""
    splits: set[str] = field(default_factory=set)
    """Splits that rows name."""
    problems: list[ValueError] = field(default_factory=list)
    """Errors of files that look like lists or tables of pairs, but could not be read."""


class Opening:
    """One pass of decisions over the files of a source."""

    def __init__(self, config: SourceConfig, tree: Tree) -> None:
        self.config = config
        self.tree = tree
        self.source = Source(tree.root)
        self.account = self.source.account
        self.names = list(tree.files)

    def reads(self, kind: str) -> bool:
        """Whether source.format allows pairs of this kind."""
        return self.config.format in READS[kind]

    def one_file(self, name: str, kind: str) -> Source:
        """The source of a single list or Parquet file; its folder is only searched for images.

        Raises ValueError when the file is no list of pairs.
        """
        if kind == "parquet":
            self._add_parquet(name, self.tree.root, posixpath.splitext(name)[0])
            self._raise_problem()
            return self.source

        one = self._try_list(name, is_given=True)
        self._raise_problem()
        if one is None:
            reason = next(iter(self.account.unread()), "it lists no pairs")
            raise ValueError(
                f"source {self.tree.root / name} is no list of images and captions: {reason}"
            )

        self._add_lists([one])
        return self.source

    def all_of_it(self) -> Source:
        """The source of a folder, or of a tar of one: every layout in it."""
        # The order matters. Files of other splits go first. Then come tars, because those without
        # samples add their members, without those of other splits, to the tree. A .txt beside an
        # image is its caption, so lists are searched among the other texts. What a list names is
        # not read a second time from the files beside it, so lists come before these.
        self._leave_out_other_splits(self.names)
        self._add_tars()
        for name in self._remaining((".parquet",)):
            self._open_parquet_of_tree(name)

        images = self._remaining(IMAGE_SUFFIXES)
        beside = (
            caption_files(images, self._remaining(CAPTION_SUFFIXES)) if self.reads("text") else {}
        )
        texts = {text for files in beside.values() for text in files}
        lists = [
            one
            for name in self._list_candidates(texts)
            if (one := self._try_list(name)) is not None
        ]
        listed = self._add_lists(lists)
        self._add_beside(beside, listed)
        self._explain_the_rest()

        return self.source

    def _remaining(self, suffixes: Sequence[str]) -> list[str]:
        """Files with one of these suffixes that have no decision yet."""
        return [name for name in self.tree.with_suffix(*suffixes) if name not in self.account.files]

    def _leave_out_other_splits(
        self, names: Sequence[str], tar: str = "", *, are_samples: bool = False
    ) -> set[str]:
        """Leave out files whose name has another split: lists, tars, Parquet; images by folder.

        `names` are those in the source, or in one `tar` of it; those of samples count by folder
        alone. Returns the names that are left out.
        """
        containers = () if are_samples else (".tar", ".parquet", *LIST_SUFFIXES)
        folders = {f"{posixpath.dirname(name)}/" for name in names}
        holding = [name for name in names if name.lower().endswith(containers)]
        splits = Splits([*holding, *folders], self.config.split)
        others = set()

        for name in names:
            # A .txt may be the caption of one image, so only its folder counts.
            is_container = name.lower().endswith(containers) and not name.lower().endswith(".txt")
            if splits.is_other(name) if is_container else splits.is_in_folder_of_other(name):
                others.add(name)

        self.account.leave_out(
            (posixpath.join(tar, name) for name in names if name in others),
            f"its name says another split than {self.config.split!r}",
            f"--embed.source.split '' reads all, and another name than {self.config.split!r} "
            "that split",
            is_expected=True,
        )
        for path, word in splits.doubtful.items():
            self.account.note(
                f"{posixpath.join(tar, path)}: {word!r} is read as a word, not as a split, as no "
                f"name beside it says {self.config.split!r}"
            )

        return others

    def _add_tars(self) -> None:
        """Read tars with captions beside images as WebDataset, and others as folders."""
        if self.tree.is_file:
            names = self.names
            if self.config.format == "webdataset" or (
                self.config.format == "auto" and is_webdataset(names)
            ):
                root = ByteRange(str(self.tree.root), 0, size_of(self.tree.root))
                head = peek(self.tree.root, PEEKED_MEMBERS)
                others = self._add_tar(self.tree.name, root, "", head)
                self.account.read("read as pairs", (name for name in names if name not in others))
            return

        # Each tar costs two small reads, which wait for storage: many at once.
        tars = self._remaining((".tar",))
        with ThreadPoolExecutor(AT_ONCE) as executor:
            paths = [Path(self.tree.files[name].path) for name in tars]
            list(executor.map(check_tar_end, paths))
            heads = list(executor.map(lambda path: peek(path, PEEKED_MEMBERS), paths))

        for name, path, head in zip(tars, paths, heads, strict=True):
            if self.config.format == "parquet":
                self._leave_out_by_format(name)
            elif self.config.format == "webdataset" or (
                self.reads("webdataset") and self._holds_samples(path, head)
            ):
                self._add_tar(name, self.tree.files[name], f"{name[:-4]}/", head)
                self.account.read("read as pairs", [name])
            else:
                self._mount(name, path)

    def _holds_samples(self, path: Path, head: Sequence[str]) -> bool:
        """Whether a tar is WebDataset's: by its first members, or by all if these do not tell.

        A tar that is sorted by kind begins with images alone or with texts alone.
        """
        if is_webdataset(head) or len(head) < PEEKED_MEMBERS:
            return is_webdataset(head)
        return is_webdataset([member.name for member in tar_members(path)])

    def _add_tar(
        self, name: str, file: ByteRange, key_prefix: str, head: Sequence[str]
    ) -> set[str]:
        """Add the parts of a WebDataset tar; its members in folders of other splits, left out.

        If the files of each sample lie together, a part is a range of the tar. Otherwise, or if the
        tar has folders of other splits, all headers are read first, and a part is a number of pairs
        that are joined by name.
        """
        self.source.tars.append(name)
        lie_together = is_webdataset(head) and not lies_apart(head)
        known = self.names if self.tree.is_file else head
        may_have_others = bool(self.config.split) and has_split_folders(known)
        if lie_together and not may_have_others:
            self.source.parts += tar_parts(name, file, key_prefix, self.config)
            return set()

        members = list(tar_members(Path(file.path)))
        others = self._leave_out_other_splits(
            [member.name for member in members],
            "" if self.tree.is_file else name,
            are_samples=True,
        )
        if lie_together and not others:
            self.source.parts += tar_parts(name, file, key_prefix, self.config)
            return others

        wanted = (member for member in members if member.name not in others)
        pairs = unsorted_pairs(wanted, key_prefix)
        self.source.parts += parts_of_pairs(name, pairs, self.config.part_rows)
        if not lie_together:
            self.account.note(
                f"{name}: files of a sample do not lie together; they are joined by name, which "
                "reads all its headers first"
            )

        return others

    def _mount(self, name: str, path: Path) -> None:
        """Add the members of a tar to the tree, as if it were a folder of its name."""
        files = {member.name: member.file for member in tar_members(path)}
        self._leave_out_other_splits(list(files), name)
        members = {f"{name}/{member}": file for member, file in files.items()}
        self.account.read("list", [name])
        self.tree = Tree(self.tree.root, False, dict(sorted((self.tree.files | members).items())))
        self.names = list(self.tree.files)

    def _open_parquet_of_tree(self, name: str) -> None:
        if not self.reads("parquet"):
            self._leave_out_by_format(name)
        elif self.tree.is_file or self.tree.files[name].offset:
            self.account.leave_out(
                [name], "Parquet inside a tar cannot be read in place", "unpack the tar"
            )
        else:
            self._add_parquet(name, Path(self.tree.files[name].path), name[:-8])

    def _add_parquet(self, name: str, path: Path, key_prefix: str) -> None:
        try:
            table = open_parquet(name, path, key_prefix, self.config)
        except FieldsError as error:
            self.source.problems.append(error)
            self.account.leave_out(
                [name], "Parquet without an image or caption column", str(error), is_expected=True
            )
            return

        self.source.tables.append(table)
        self.source.parts += parquet_parts(table, self.config)
        self.account.read("read as pairs", [name])
        folder = "" if self.tree.is_file else posixpath.dirname(name)

        if not self.tree.is_file:
            images = (
                posixpath.normpath(posixpath.join(folder, image)) for image in image_paths(table)
            )
            self.account.read(
                "part of a pair", (image for image in images if image in self.tree.files)
            )

    def _leave_out_by_format(self, name: str) -> None:
        reason = f"source.format is {self.config.format}"
        self.account.leave_out(
            [name], reason, "--embed.source.format auto reads all layouts", is_expected=True
        )

    def _list_candidates(self, texts: set[str]) -> list[str]:
        """Files that may be lists of pairs, without the `texts` beside images.

        Of more than MOST_LISTS, those are read whose names say that they list pairs, then those
        nearest to the root.
        """
        names = [name for name in self._remaining(LIST_SUFFIXES) if name not in texts]
        if not self.reads("list"):
            for name in names:
                self._leave_out_by_format(name)
            return []

        def rank(name: str) -> tuple[bool, int, str]:
            # False sorts before True.
            return not is_named_as_list(name), name.count("/"), name

        ranked = sorted(names, key=rank)
        self.account.leave_out(
            (name for name in ranked[MOST_LISTS:] if not name.lower().endswith(".txt")),
            f"there are more than {MOST_LISTS} files that may be lists",
            "give the list itself as --data.pairs",
        )

        return sorted(ranked[:MOST_LISTS])

    def _try_list(self, name: str, *, is_given: bool = False) -> CaptionList | None:
        """A file as a list of pairs; None, with a reason in the account, if it is no list.

        A file that the user has named (`is_given`) is parsed whatever its name and first bytes say.
        """
        file = self.tree.files[name]
        reason = (
            "" if is_given else cannot_be_list(name, file.size, file.head(HEAD_BYTES), self.config)
        )
        if reason == NAMES_NO_IMAGE and name.lower().endswith(TEXT_SUFFIXES):
            return None  # it may be the caption of an image that is not there
        if reason:
            self.account.leave_out([name], reason, is_expected=True)
            return None

        try:
            one = read_list(name, file.read(), self.config)
        except NoList as error:
            self.account.leave_out([name], str(error), is_expected=True)
        except ValueError as error:
            self.source.problems.append(error)
            self.account.leave_out([name], "a list that cannot be read as one", str(error))
        else:
            if one.entries:
                return one
            self.account.leave_out([name], "a list without records", is_expected=True)

        return None

    def _add_lists(self, lists: list[CaptionList]) -> ListedPairs:
        """Add the pairs of all lists, except lists of which no image exists if there are others."""
        listed = listed_pairs(self.tree, lists, self.config)
        self.source.lists = lists
        self.source.splits |= listed.splits
        self.account.read("list", (one.name for one in lists))
        self.account.read("part of a pair", listed.used)
        reason = f"its list says another split than {self.config.split!r}"
        self.account.leave_out(sorted(listed.other_split), reason, is_expected=True)

        present = {
            name
            for name, pairs in listed.pairs.items()
            if any(pair.image is not None for pair in pairs)
        }

        for name, pairs in listed.pairs.items():
            if pairs and name not in present and (present or self.source.parts):
                self.account.note(
                    f"{name}: none of the {len(pairs)} images that it lists is here; it is left out"
                )
                listed.pairs[name] = []
            self.source.parts += parts_of_pairs(name, listed.pairs[name], self.config.part_rows)

        self._say_joined_and_outside(listed)
        return listed

    def _say_joined_and_outside(self, listed: ListedPairs) -> None:
        if listed.num_joined:
            lists = ", ".join(listed.pairs)
            self.account.note(
                f"{listed.num_joined} images are in several lists ({lists}): captions are joined"
            )
        if listed.num_of_other:
            self.account.note(
                f"{listed.num_of_other} records name images that another list has in another "
                "split: they are not read"
            )
        if listed.outside:
            self.account.note(
                f"{len(listed.outside)} images of lists lie outside the source, "
                f"{listed.outside[0]} first"
            )

    def _add_beside(self, beside: dict[str, list[str]], listed: ListedPairs) -> None:
        """Add images with caption files beside them, unless a list names the image."""
        pairs = []
        for image, texts in beside.items():
            if image in listed.used or image in listed.other_split:
                # A text may be a second caption, so it counts as unexpected; a JSON is metadata.
                # The first reason stands, so the second call is for the JSON files alone.
                self.account.leave_out(
                    [text for text in texts if not text.endswith(".json")],
                    "a caption file beside an image that a list names, too",
                    "--embed.source.format list reads the lists alone, text these files alone",
                )
                self.account.leave_out(
                    texts, "data beside an image that a list names", is_expected=True
                )
                continue
            # One file per kind: the first in the order of caption_files.
            by_kind: dict[str, ByteRange] = {}
            for text in texts:
                by_kind.setdefault(
                    caption_kind(posixpath.splitext(text)[1].lower()), self.tree.files[text]
                )
            files = tuple(sorted(by_kind.items()))
            pairs.append(Pair(image, self.tree.files[image], (), files))
            self.account.read("part of a pair", [image, *texts])

        self.source.num_beside = len(pairs)
        self.source.parts += parts_of_pairs(self.tree.name, pairs, self.config.part_rows)

    def _explain_the_rest(self) -> None:
        """Give a reason for each file that no decision has reached."""
        has_texts = {
            posixpath.dirname(name)
            for name, use in self.account.files.items()
            if _is_read_text(name, use.use)
        }

        for name in self.tree.files:
            if name in self.account.files:
                continue
            suffix = posixpath.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                reason = "an image without a caption: no list names it, and no text lies beside it"
                self.account.leave_out([name], reason, "add it to the list, or a .txt of its name")
            elif suffix in UNREAD_IMAGE_SUFFIXES:
                self.account.leave_out(
                    [name],
                    f"an image of a format that is not read ({suffix})",
                    "convert it to JPEG",
                )
            elif suffix in COMPRESSED_SUFFIXES:
                self.account.leave_out(
                    [name], "a compressed file, which is not read in place", "unpack it"
                )
            elif suffix in (".arrow", ".feather", ".xlsx", ".tfrecord", ".mds"):
                self.account.leave_out(
                    [name], f"{UNREAD_KINDS[suffix]}, which is not read", "convert it to Parquet"
                )
            elif (
                looks_like_data(name)
                and posixpath.dirname(name) in has_texts
                and not is_document(name)
            ):
                self.account.leave_out([name], "a caption file without an image of its name")
            else:
                self.account.leave_out([name], "neither image nor caption", is_expected=True)

    def _raise_problem(self) -> None:
        if self.source.problems:
            raise self.source.problems[0]


def _is_read_text(name: str, use: str) -> bool:
    return use == "part of a pair" and name.lower().endswith(CAPTION_SUFFIXES)
