"""The names under which people keep images and captions, and what a setting means among the names
of a file.
"""

import fnmatch
import re
from collections.abc import Sequence

# In order of preference: the first one that a record has is used.
IMAGE_FIELDS = (
    "image",
    "file_name",
    "filename",
    "filepath",
    "file",
    "path",
    "image_path",
    "image_name",
    "image_file",
    "img",
    "img_path",
    "image_filename",
    "img_name",
    "images",
    "jpg",
    "png",
    "webp",
    "jpeg",
    "image_bytes",
    "bytes",
    "image_id",
    "key",
)
CAPTION_FIELDS = (
    "captions",
    "caption",
    "text",
    "texts",
    "title",
    "sentence",
    "sentences",
    "txt",
    "prompt",
    "description",
    "comment",
    "caption_str",
    "alt_text",
    "alt",
    "conversations",
    "messages",
    "raw_caption",
)
CAPTION_WORDS = re.compile("caption|text|prompt|descri|sentence|comment|alt_|title")
URL_FIELDS = ("url", "image_url", "img_url", "image_link")


def plain(name: str) -> str:
    """A field's name in one form for all conventions: Image-Name and image name: image_name."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def known_names(known: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The fields that have a known name, in the order of the known names."""
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(plain(name), name)
    return tuple(by_plain[name] for name in known if name in by_plain)


def matching(setting: str, names: Sequence[str]) -> tuple[str, ...]:
    """The fields that a setting means; empty if it means none.

    That is the field of this name, else the first that differs in form only (case, blanks,
    hyphens), else all fields that match it as a pattern, else the setting itself if it is a path
    into a field.
    """
    if setting in names:
        return (setting,)
    same = tuple(name for name in names if plain(name) == plain(setting))
    return (
        same[:1]
        or tuple(fnmatch.filter(names, setting))
        or ((setting,) if "." in setting and setting.split(".")[0] in names else ())
    )
