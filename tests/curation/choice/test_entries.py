"""Entries in captions against a plain search, and the step balanced over them."""

import re

import numpy as np
import pytest

from curation.choice.config import OFF, DuplicatesConfig
from curation.choice.entries import match_captions, read_entries
from curation.choice.why import why
from curation.clusters.config import LevelsConfig
from curation.clusters.scan import InProcess, Points
from curation.clusters.vectors import ShardVectors
from curation.config import CaptionClustersConfig, CurateConfig
from curation.curate import curate
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CLS
from curation.shards.selection import read_selection

CAPTIONS = [
    ["A red car, parked.", "it rains"],
    ["redcar"],
    ["red\tcar", "Red Car"],
    ["a carpet"],
    ["car:red"],
    ["?"],
    ["the New York skyline at night!"],
    ["a 'night' in new york"],
]
ENTRIES = ("red", "car", "red car", "New York", "new york", "night", "?", "never there")


@pytest.fixture
def pool(tmp_path, embedding_spec, write_pool):
    """pool(captions): a folder of embeddings without caption vectors, and a file of the entries."""

    def write(captions, entries=ENTRIES):
        spec = embedding_spec(
            content="pooled", num_registers=0, grid=(1, 1), caption_dim=0, caption_encoder=""
        )
        write_pool(tmp_path / "pool", spec, (len(captions) - 3, 3), columns={"captions": captions})
        path = tmp_path / "entries.txt"
        path.write_text("\n".join(entries) + "\n\n")
        return tmp_path / "pool", path

    return write


def _slowly(captions, entries):
    """The published rule, one entry after another."""
    texts = [
        re.sub(r"[\t\n\r]", " ", re.sub(r"([,.;:?!`])", r" \1 ", f" {caption} "))
        for caption in captions
    ]
    return {entry for entry in entries if any(f" {entry} " in text for text in texts)}


def test_entries_are_found_by_the_published_rule(pool):
    folder, path = pool(CAPTIONS)
    points = Points(ShardVectors(folder, CLS), InProcess())
    found = match_captions(points, path)
    names = np.array(read_entries(path))
    for row, captions in enumerate(CAPTIONS):
        own = found.take(np.array([row])).values
        assert set(names[own]) == _slowly(captions, ENTRIES)
        assert (np.diff(own) > 0).all()
    assert [set(names[found.take(np.array([row])).values]) for row in (0, 1)] == [
        {"red", "car", "red car"},
        set(),
    ]


def _curate(tmp_path, folder, path, name="out", **changes):
    fields = {"levels": LevelsConfig(clusters=(12, 3)), "duplicates": DuplicatesConfig(alike=OFF)}
    out = tmp_path / name
    out.mkdir()
    return out, curate(CurateConfig(**{**fields, **changes}), InProcess(), out, folder, {}, path)


def _long_tail():
    """Three hundred pairs of a frequent entry, thirty of a rare one, ten of both, twenty of
    none.
    """
    return (
        [["a dog"]] * 300
        + [["one axolotl"]] * 30
        + [["a dog and an axolotl"]] * 10
        + [["nothing known"]] * 20
    )


@pytest.mark.parametrize("method", ["text", "both"])
def test_the_step_balances_over_entries(tmp_path, pool, method):
    folder, path = pool(_long_tail(), ("dog", "axolotl", "yeti"))
    out, summary = _curate(tmp_path, folder, path, method=method, target_rows=90)
    rows = read_selection(out, EmbeddingShards(folder)).rows
    assert len(rows) == 90 == summary["kept"]
    assert summary["removed_text_no_metadata_entry"] == 20
    if method == "text":
        assert np.isin(np.arange(300, 340), rows).all()  # an entry rarer than t loses none
    assert summary["text_entries_entropy_after"] > summary["text_entries_entropy_before"]
    answer = why(out, "key-335")
    assert answer["entries"] == ["dog", "axolotl"]
    assert why(out, "key-345")["reason"] == "text: no metadata entry"


def test_pairs_without_an_entry_can_be_kept(tmp_path, pool):
    folder, path = pool(_long_tail(), ("dog", "axolotl"))
    out, summary = _curate(
        tmp_path,
        folder,
        path,
        method="text",
        text=CaptionClustersConfig(threshold=40.0, unmatched="keep"),
    )
    rows = read_selection(out, EmbeddingShards(folder)).rows
    assert np.isin(np.arange(300, 360), rows).all()
    assert 20 < (rows < 300).sum() < 65
    assert summary["text_threshold"] == 40.0


@pytest.mark.parametrize("changes", [{"method": "text"}, {"method": "both", "combine": "union"}])
def test_a_target_below_what_is_never_dropped_is_refused(tmp_path, pool, changes):
    folder, path = pool(_long_tail(), ("dog", "axolotl"))
    with pytest.raises(ValueError, match="19 pairs are asked for, but 20 hold no metadata"):
        _curate(
            tmp_path,
            folder,
            path,
            **changes,
            text=CaptionClustersConfig(unmatched="keep"),
            target_rows=19,
        )


@pytest.mark.parametrize("unmatched", ["drop", "keep"])
@pytest.mark.parametrize("tail_share", [None, 0.06])
def test_entries_that_no_caption_holds_are_refused(tmp_path, pool, unmatched, tail_share):
    folder, path = pool(_long_tail(), ("Dog", "yeti"))
    text = CaptionClustersConfig(unmatched=unmatched, tail_share=tail_share)
    with pytest.raises(
        ValueError, match=r"no caption of 360 pairs holds any of 2 entries.*case counts"
    ):
        _curate(tmp_path, folder, path, method="text", text=text)


def test_a_mark_of_byte_order_is_no_part_of_the_first_entry(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_bytes(b"\xef\xbb\xbfdog\r\naxolotl\n")
    assert read_entries(path) == ["dog", "axolotl"]


def test_the_selection_does_not_depend_on_order(tmp_path, pool, write_pool, embedding_spec):
    folder, path = pool(_long_tail(), ("dog", "axolotl"))
    config = {
        "method": "text",
        "text": CaptionClustersConfig(threshold=25.0),
        "duplicates": DuplicatesConfig(alike=OFF),
    }
    one, _ = _curate(tmp_path, folder, path, "one", **config)
    path.write_text("axolotl\ndog\ndog\n")
    two, _ = _curate(tmp_path, folder, path, "two", **config)
    assert (one / "selection.arrow").read_bytes() == (two / "selection.arrow").read_bytes()


def test_an_empty_list_is_refused(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="no entries"):
        read_entries(path)


def test_entries_of_unspaced_scripts_match_as_runs_of_characters(pool):
    captions = [
        ["两只狗在海滩上奔跑。"],
        ["二匹の犬が浜辺を走る"],
        ["สุนัขสองตัววิ่งบนชายหาด"],
        ["iPhone手机"],
        ["dogs run"],
    ]
    entries = ("狗", "海滩", "犬", "浜辺", "สุนัข", "ชายหาด", "手机", "iPhone", "dog")
    folder, path = pool(captions, entries)
    found = match_captions(Points(ShardVectors(folder, CLS), InProcess()), path)
    names = [{entries[entry] for entry in found.take(np.array([row])).values} for row in range(5)]
    assert names == [{"狗", "海滩"}, {"犬", "浜辺"}, {"สุนัข", "ชายหาด"}, {"手机", "iPhone"}, set()]
