"""The report's sections from a real run of the step on synthetic shards."""

import json
import re

import numpy as np
import pytest

import curation.report
from curation.choice.balance import entropy
from curation.choice.config import OFF, DuplicatesConfig, LeakageConfig, LikenessConfig
from curation.clusters.config import LevelsConfig
from curation.clusters.scan import InProcess
from curation.config import CaptionClustersConfig, CurateConfig
from curation.curate import curate
from curation.report import curation_sections
from curation.shards.schema import CLS


@pytest.fixture
def curated(tmp_path, embedding_spec, write_pool):
    """curated(**changes): folders of a curated pool of 300 rows, the last ten of which repeat the
    first ten.
    """

    def run(entries=(), **changes):
        images = np.random.default_rng(0).standard_normal((300, 1, 8)).astype(np.float32)
        images[290:] = images[:10]
        write_pool(tmp_path / "pool", embedding_spec(), (100, 200), vectors={CLS: images})
        fields = {
            "levels": LevelsConfig(clusters=(12, 3)),
            "text": CaptionClustersConfig(levels=LevelsConfig(clusters=(5,))),
            "duplicates": DuplicatesConfig(
                alike=LikenessConfig(hash_bits=None, form_bits=None, cosine=0.999)
            ),
        }
        out = tmp_path / "out"
        out.mkdir()
        (tmp_path / "entries.txt").write_text("\n".join(entries))
        metadata = tmp_path / "entries.txt" if entries else None
        evaluation = {"leakage_self": tmp_path / "pool"} if entries else {}
        curate(
            CurateConfig(**{**fields, **changes}),
            InProcess(),
            out,
            tmp_path / "pool",
            evaluation,
            metadata,
        )
        return out, tmp_path / "pool"

    return run


def test_sections_show_every_stage_and_need_no_network(curated):
    sections = {section.title: section.html for section in curation_sections(*curated())}
    assert list(sections) == [
        "What was read",
        "What was kept",
        "Cluster sizes before and after",
        "Evenness",
        "Largest image clusters",
        "Tail image clusters",
        "Caption clusters",
        "Duplicate: vector",
        "Pairs next to the thresholds",
        "Time and memory",
    ]
    page = "".join(sections.values())
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)', page))
    assert sections["Duplicate: vector"].count("<img") == 20
    assert "caption" in sections["Caption clusters"]


def test_metadata_and_captions_of_evaluation_have_sections(curated):
    leakage = LeakageConfig(alike=OFF)
    folders = curated(entries=("caption", "again", "7", "yeti"), leakage=leakage)
    sections = {section.title: section.html for section in curation_sections(*folders)}
    assert "3 of 4 entries occur" in sections["Metadata entries"]
    assert "yeti" not in sections["Metadata entries"]
    assert "300 pairs have a caption" in sections["Captions that occur in evaluation"]
    assert "chosen by captions" in sections["What was kept"]


@pytest.mark.parametrize("clusters", [(1,), (2,), (3, 1)])
def test_few_clusters_need_no_map(curated, clusters):
    folders = curated(levels=LevelsConfig(clusters=clusters), method="image")
    sections = {section.title: section.html for section in curation_sections(*folders)}
    assert ("map of clusters" in sections["Cluster sizes before and after"]) == (clusters[0] > 2)


def test_size_curves_count_copies(curated, monkeypatch):
    shown = {}
    monkeypatch.setattr(curation.report, "size_curves", lambda curves: shown.update(curves) or "")
    out, pool = curated(method="image", repeats=8, target_rows=500)
    curation_sections(out, pool)
    before, after = shown["images, level 1 (12 clusters)"]
    assert (before.sum(), after.sum()) == (300, 500)
    figures = json.loads((out / "curation.json").read_text())["figures"]
    assert entropy(after) == pytest.approx(figures["image_level1_entropy_after"])


def test_sections_of_an_uncurated_arm_are_short(curated):
    folders = curated(method="none", duplicates=DuplicatesConfig(alike=OFF))
    sections = curation_sections(*folders)
    assert [section.title for section in sections] == [
        "What was read",
        "What was kept",
        "Time and memory",
    ]
    assert "nothing was removed" in sections[1].html
