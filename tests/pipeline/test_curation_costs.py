"""Costs of curation against counts made by hand."""

from curation.clusters.config import LevelPlan
from curation.config import CurateConfig
from pipeline.curation_costs import Passes, curation_table, level_passes


def test_a_level_in_one_stage_is_its_iterations_and_one_assignment():
    assert list(level_passes("level", 1000, LevelPlan(10, 0, 4), 25)) == [
        Passes("level", 1000, 10, 26)
    ]
    assert Passes("level", 1000, 10, 26).flop(8) == 2 * 1000 * 10 * 8 * 26


def test_a_split_level_compares_points_with_the_parts_of_their_cluster():
    first, second = level_passes("level", 1000, LevelPlan(100, 0, 4, split=5), 3)
    assert (first.centroids, second.centroids) == (20, 5)
    assert first.times == second.times == 4


def test_resampling_clusters_a_few_points_and_assigns_all():
    _, resampled, assigned = level_passes("level", 1000, LevelPlan(10, 2, 4), 5)
    assert resampled == Passes("level, resampled", 40, 10, 10)
    assert assigned == Passes("level, assigned again", 1000, 10, 2)


def test_the_plan_splits_what_curation_would_split_and_says_how_many_workers_it_keeps_busy():
    table = curation_table(CurateConfig(), 10_000_000, 1024, 256)
    stages = dict(zip(table.columns[0].cells, table.columns[2].cells, strict=True))
    for side in ("image", "caption"):
        assert stages[f"{side} level 1"] == "10,000"
        assert stages[f"{side} level 1, split"] == "100"
        assert stages[f"{side} level 2"] == "2,500"
        assert stages[f"{side} level 2, split"] == "100"
    assert "at most 77 workers" in table.caption
