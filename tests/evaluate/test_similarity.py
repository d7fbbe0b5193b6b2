"""Similarity of sentences: SciPy's correlation, the published layout, and tables that are refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from colors import BlindEncoder, ColorEncoder, write_folder, write_tar
from scipy.stats import spearmanr

from evaluate.config import EvaluateConfig, ReportConfig
from evaluate.evaluate import Evaluator
from evaluate.examples import write_similarity
from evaluate.report import run as write_report
from evaluate.results import read_results, result_file, write_flat
from evaluate.sets.known import open_similarity, tasks_of
from evaluate.similarity import compare_sentences
from evaluate.tables import as_csv, as_markdown
from evaluate.tally import Tally, estimate, paired_difference

Pairs = Sequence[tuple[str, str, float]]
PAIRS: Pairs = (
    ('a "black" thing, black', "so black", 5.0),
    ("so black", "so red", 3.2),
    ("so black", "so yellow", 1.0),
    ("so black", "so white", 0.0),
)
"""In the order of the cosines of their colors: 1, 1/3, -1/3, -1."""


def published(pairs: Pairs = PAIRS) -> bytes:
    """The STS Benchmark's own layout: tabs, no header, and quotes that are text."""
    rows = [
        f"main-captions\tMSRvid\t2012test\t{place:04d}\t{score:.3f}\t{first}\t{second}\n"
        for place, (first, second, score) in enumerate(pairs)
    ]
    return "".join(rows).encode()


def glue() -> bytes:
    """Named columns, the score behind the sentences."""
    head = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    )
    rows = [f"{place}\tg\tf\ty\t0\ts\ts\t{a}\t{b}\t{c}\n" for place, (a, b, c) in enumerate(PAIRS)]
    return (head + "".join(rows)).encode()


def three_columns() -> bytes:
    """Commas, and quotes around a sentence that has one."""
    rows = ['"{}","{}",{}\r\n'.format(a.replace('"', '""'), b, c) for a, b, c in PAIRS]
    return "".join(rows).encode()


TABLES = {"sts-test.csv": published, "dev.tsv": glue, "mine.csv": three_columns}


@pytest.mark.parametrize("levels", [3, 1000])
def test_correlation_and_its_interval_are_those_of_scipy(levels: int) -> None:
    random = np.random.default_rng(0)
    cosines = random.integers(0, levels, 40) / levels
    scores = random.integers(0, 6, 40).astype(float)
    tally = Tally(cosines[:, None], scores[:, None], statistic="spearman")
    assert tally.value == pytest.approx(spearmanr(cosines, scores).statistic)

    drawn = np.random.default_rng(7).integers(0, 40, (150, 40), dtype=np.int32)
    values = [spearmanr(cosines[rows], scores[rows]).statistic for rows in drawn]
    interval = estimate(tally, samples=150, seed=7)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]))
    assert paired_difference(tally, tally, 20, 0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", TABLES)
def test_every_layout_gives_the_same_pairs(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {name: TABLES[name](), "readme.txt": b"no table"})
    dataset = open_similarity(folder)
    assert dataset.sentences == tuple((first, second) for first, second, _ in PAIRS)
    assert dataset.scores.tolist() == [score for _, _, score in PAIRS]
    assert open_similarity(folder / name).sentences == dataset.sentences
    tar = write_tar(tmp_path / "set.tar", {name: TABLES[name]()})
    assert open_similarity(tar).sentences == dataset.sentences


def test_published_benchmark_is_known_by_its_files_and_its_test_split_is_scored(
    tmp_path: Path,
) -> None:
    files = {
        "sts-train.csv": published((("no", "no", 1.0),)),
        "sts-dev.csv": published((("no", "no", 1.0),)),
        "sts-test.csv": published(),
    }
    folder = write_folder(tmp_path / "stsbenchmark", files)
    assert tasks_of(folder) == tasks_of(folder / "sts-test.csv") == ["similarity"]
    facts = open_similarity(folder).facts
    assert (facts.kind, facts.notes["listing"]) == ("sts-benchmark", "sts-test.csv")
    assert facts.notes["scores"] == "0 to 5"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b""}, r"has no table \(\.csv, \.tsv\): name the file"),
        ({"latest.csv": b"", "b.csv": b""}, "has 2 tables, none called test or dev"),
        ({"a.csv": b"one,two\n"}, "has 2 columns: a header with sentence1, sentence2, score"),
        ({"a.csv": b""}, "has 0 columns"),
        ({"a.csv": b"a,b,1\n\nc,d,much\n"}, "line 3 of a.csv of .* has the score 'much'"),
        ({"a.csv": b"a,b,nan\n"}, "has the score 'nan': a number is required"),
        ({"a.csv": b"a,b,1\nc,,2\n"}, r"line 2 of a.csv of .* is \['c', '', '2'\]: two sentences"),
        ({"a.tsv": b"a\tb\t1\nc\td\n"}, "line 2 of a.tsv of .* has the score ''"),
        ({"a.csv": b"a,b,1\nc,d,1\n"}, "2 pairs with 1 different scores: at least 2"),
        ({"a.csv": b'a,"b,1\n'}, "line 1 of a.csv of .* is no row of a table"),
    ],
)
def test_tables_without_pairs_and_scores_are_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_similarity(write_folder(tmp_path / "set", files))


def test_seeing_encoder_has_the_order_of_people_and_a_blind_one_none(tmp_path: Path) -> None:
    dataset = open_similarity(write_folder(tmp_path / "set", {"sts-test.csv": published()}))
    assert compare_sentences(ColorEncoder(), dataset)["spearman"].value == pytest.approx(1.0)
    assert compare_sentences(BlindEncoder(), dataset)["spearman"].value == 0.0

    reversed_pairs = [(first, second, -score) for first, second, score in PAIRS]
    files = {"sts-test.csv": published(reversed_pairs)}
    against = open_similarity(write_folder(tmp_path / "against", files))
    assert compare_sentences(ColorEncoder(), against)["spearman"].value == pytest.approx(-1.0)


def test_similarity_is_in_results_tables_and_page_as_any_other_set(tmp_path: Path) -> None:
    table = write_folder(tmp_path, {"sts-test.csv": published()}) / "sts-test.csv"
    folders = {}
    for suffix, encoder in (("", ColorEncoder), ("_uncurated", BlindEncoder)):
        out = folders[f"evaluate{suffix}"] = tmp_path / f"evaluate{suffix}"
        config = EvaluateConfig(bootstrap_samples=50)
        Evaluator(config, out, {"similarity_sts": table}, encoder).evaluate("similarity_sts")
        write_flat(out, [json.loads(result_file(out, "similarity_sts").read_text())])

    (result,) = read_results(folders["evaluate"])
    assert (result["task"], result["error"]) == ("similarity", "")
    assert result["metrics"]["spearman"]["value"] == pytest.approx(1.0)
    assert result["metrics"]["spearman"]["n"] == result["sizes"]["pairs of sentences"] == 4
    assert result["protocol"]["intervals"] == "95 %: bootstrap over pairs of sentences (50)"

    results = {name: read_results(folder) for name, folder in folders.items()}
    assert "Spearman correlation × 100 | 100.0" in as_markdown(results)
    assert "similarity_sts,similarity,spearman,,0.0,0.0,0.0,4" in as_csv(results)
    write_report(ReportConfig(), out=tmp_path, **folders)
    page = (tmp_path / "report.html").read_text()
    assert "Spearman correlation × 100" in page
    assert "so black<br>so white" in page


def test_the_pairs_of_the_largest_disagreement_are_shown_with_their_places(tmp_path: Path) -> None:
    scores = (1.0, 3.2, 5.0, 0.0)  # the first pair and the third have changed places
    pairs = [
        (first, second, score) for (first, second, _), score in zip(PAIRS, scores, strict=True)
    ]
    dataset = open_similarity(write_folder(tmp_path / "set", {"sts-test.csv": published(pairs)}))
    tally = compare_sentences(ColorEncoder(), dataset)["spearman"]
    write_similarity(tmp_path, dataset, tally.hits[:, 0], wanted=3)

    shown = json.loads((tmp_path / "examples.json").read_text())
    assert shown["num_pairs"] == 4
    first, second, third = shown["pairs"]
    assert first == {
        "sentences": list(PAIRS[0][:2]),
        "score": 1.0,
        "place_by_score": 3.0,
        "cosine": 1.0,
        "place_by_cosine": 1.0,
    }
    assert (second["place_by_score"], second["place_by_cosine"]) == (1.0, 3.0)
    assert third["place_by_score"] == third["place_by_cosine"]
