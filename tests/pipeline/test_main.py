"""The command line, as a user types it; the whole story once, on the debug recipe."""

import io
import json
import shlex
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console
from starlette.testclient import TestClient

from evaluate.search.web import make_app
from pipeline.__main__ import main
from pipeline.advice import rebuilding
from pipeline.demo import make_site
from pipeline.graph import resolve_backbone
from pipeline.options import parse_words
from pipeline.presets import PRESETS
from pipeline.recipe_file import dump_recipe, load_recipe


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["rnu", "debug"], "no verb 'rnu': did you mean 'run'"),
        (["run", "quikstart"], "no recipe 'quikstart': did you mean 'quickstart'"),
        (["run", "debug", "--only", "trian"], "no step 'trian': did you mean 'train'"),
        (["plan", "debug", "--only", "trian"], "no step 'trian': did you mean 'train'"),
        (["show", "debug", "curat"], "no step 'curat': did you mean 'curate'"),
        (["run", "flickr8k", "--embed.backbone", "random-vit"], "set --data.pairs"),
        (["run", "missing.yaml"], r"missing\.yaml"),
        (
            ["run", "debug", "--evaluate.sets", "retreival"],
            "no evaluation set 'retreival': did you mean 'retri",
        ),
        (["plan", "debug", "--rows", "-5"], "--rows is -5: a number of pairs is required"),
        (["run", "debug", "train"], "`run` has no word train (only logs, cluster, show, export)"),
        (
            ["status", "debug", "--only", "curate"],
            "`status` has no option --only (only plan, run, evaluate, submit)",
        ),
        (
            ["evaluate", "--embed.backbone", "random-vit", "--set", "x"],
            "evaluate without a model: add --model",
        ),
        (
            ["evaluate", "--embed.backbone", "random-vit", "--model", "x"],
            "evaluate without a set: add --set",
        ),
        (["recipes", "--foo", "bar"], "`recipes` has no option --foo"),
        (
            ["show", "--workspace", "w", "debug", "curate", "KEY"],
            "has not run: `python -m pipeline run debug --only",
        ),
        (
            ["run", "flickr8k", "--data.pairs", "/absent/[/old]/x.tar"],
            "/absent/[/old]/x.tar does not exist",
        ),
    ],
)
def test_wrong_words_end_with_code_two_and_the_nearest(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--workspace", str(tmp_path)]) == 2
    assert complaint.replace("\\", "") in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--train.batch-sise", "64"], "no option '--train.batch-sise': did you mean '--train.bat"),
        (["--forse", "train"], "no option '--forse': did you mean '--force'?"),
        (["--worksapce", "w"], "no option '--worksapce': did you mean '--workspace'?"),
        (["--train.optim.betas", "0.9"], "--train.optim.betas has too few values: FLOAT FLOAT is"),
        (["--embed.backbone", "dinov2-vits15"], "dinov2-vits14"),
        (["--embed.content", "all"], "--embed.content is 'all': must be one of pooled, grid, tok"),
        (["--train.batch-size", "many"], "--train.batch-size is 'many': INT is required; correct"),
        (["--train.optim.lr", "quick"], "--train.optim.lr is 'quick': FLOAT is required; correct"),
        (["--train.batch-size"], "--train.batch-size has too few values: INT is required"),
        (["--train.batch-size", "-5"], "train.batch_size is -5: must be at least 2; correct it"),
        (["--rows", "many"], "--rows: it is 'many', and a whole number is required; correct it"),
        (["--rows"], "--rows: expected one argument; correct it, or leave it out"),
        (["--only", ""], "--only: it is empty, and a value is required; correct it"),
    ],
)
def test_wrong_flags_end_with_code_two_and_one_line(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "debug", "--workspace", str(tmp_path), *flags]) == 2
    printed = capsys.readouterr().err
    assert complaint in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["", "debug"], "there is no verb ''"),
        (["run", ""], "RECIPE: it is empty, and a value is required"),
        (["status", "debug", "--workspace", ""], "--workspace: it is empty, and a value is req"),
        (["status", "debug", "--json", "--watch"], "--json and --watch exclude each other"),
        (["show", "debug", "--json", "--csv"], "--json and --csv exclude each other"),
        (["show", "debug", "train", "--latex"], "train and --latex exclude each other"),
        (["run", "debug", "--only", "pool", "--exactly", "embed"], "--only and --exactly exclude"),
        (["export", "debug", "train", "--model", "x", "--to", "y"], "train and --model exclude"),
        (["logs", "debug", "train", "embed"], "`logs` takes 1 word after 'debug', and 'embed' is"),
        (["recipes", "debug"], "`recipes` has no word debug"),
        (["inspect"], "`inspect` needs the path of image-caption pairs"),
        (["demo", "debug", "--port", "99999"], "--port: it is 99999, and must be from 1 to 65535"),
        (["submit", "debug", "--one-job", "--cluster", "http://x:1"], "--one-job is about SLURM"),
        (["export", "debug", "--to", "empty.yaml"], "--to is empty.yaml, a file: a folder is req"),
        (["export", "debug", "--to", "x", "--model", "absent"], "--model absent is no folder: one"),
        (["demo", "debug", "--images", "absent"], "--images absent does not exist: a folder of"),
        (["plan", "missing.yaml"], "missing.yaml cannot be read (No such file or directory)"),
        (["plan", "folder.yaml"], "folder.yaml cannot be read (Is a directory)"),
        (["plan", "folder"], "no recipe 'folder'; recipes: quickstart, own, flickr8k, vitl14, deb"),
        (["plan", "empty.yaml"], "empty.yaml is incomplete: name and description must be there"),
        (["plan", "open.yaml"], "open.yaml is not YAML (expected the node content"),
        (
            ["plan", "debug", "--workspace", "empty.yaml"],
            "empty.yaml is a file: the workspace needs a folder",
        ),
        (["cluster", "check", "missing.yaml"], "missing.yaml cannot be read (No such file"),
    ],
)
def test_wrong_uses_end_with_code_two_and_one_line_on_what_to_do(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    Path("folder").mkdir()
    Path("empty.yaml").touch()
    Path("open.yaml").write_text("train: [")
    assert main(words) == 2
    printed = capsys.readouterr().err.splitlines()
    assert complaint in printed[-1]
    assert [line for line in printed if " INFO " not in line] == printed[-1:]


def test_every_field_is_a_flag_in_either_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--emoji.scenes", "10", "--embed.backbone=random-vit", "--train.optim.lr=3e-4"]
    assert main(["config", "--workspace", str(tmp_path), "debug", *flags]) == 0
    printed = capsys.readouterr().out
    recipe = load_recipe(printed, "printed")
    assert recipe.emoji is not None
    assert (recipe.emoji.scenes, recipe.embed.backbone.name, recipe.train.optim.lr) == (
        10,
        "random-vit",
        3e-4,
    )


def test_plan_says_what_only_and_force_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "debug", "--workspace", str(tmp_path), "--only", "curate"]) == 0
    states = {
        line.split()[0]: line
        for line in capsys.readouterr().out.splitlines()
        if line.split()[2:3] != []
    }
    assert "to run" in states["curate"]
    assert "left out" in states["train"]


def test_plan_refuses_what_evaluation_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["plan", "debug", "--workspace", str(tmp_path), "--evaluate.sets", "retreival"]) == 2
    )
    assert "cannot run yet: evaluate.sets: there is no" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pairs.csv", "folder"])
def test_plan_refuses_pairs_that_embedding_would(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.csv").touch()
    (tmp_path / "folder").mkdir()
    words = ["plan", "own", "--workspace", str(tmp_path / "w"), "--embed.backbone", "random-vit"]
    assert main([*words, "--data.pairs", str(tmp_path / name)]) == 2
    assert f"cannot run yet: source {tmp_path / name}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["status", "plan", "show", "verify"])
def test_words_that_only_read_say_nothing_besides_their_answer(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "debug", "--workspace", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_plan_names_all_problems_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs" / "7").mkdir(parents=True)
    (tmp_path / "pairs" / "7" / "1.jpg").write_bytes(b"")
    words = ["plan", "own", "--workspace", str(tmp_path / "w"), "--embed.backbone", "random-vit"]
    words += [
        f"--data.{name}={tmp_path / 'pairs'}"
        for name in ("pairs", "classification", "segmentation")
    ]
    assert main([*words, "--others", str(tmp_path / "absent")]) == 2
    printed = capsys.readouterr().out
    for problem in ("absent is no model", "class name '7' is a number", "no labels.json"):
        assert problem in printed


def test_plan_counts_every_model_and_no_clustering_that_is_not_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "entries.txt").write_text("dog\n")
    words = ["plan", "vitl14", "--workspace", str(tmp_path), "--rows", "650000000"]
    assert main(words) == 0
    alone = capsys.readouterr().out
    assert (
        main([*words, "--compare", "uncurated", "--data.metadata", str(tmp_path / "entries.txt")])
        == 0
    )
    both = capsys.readouterr().out
    assert "3,276.80 M pairs (50,000 steps of 65,536)" in alone
    assert "6,553.60 M pairs (50,000 steps of 65,536, 2 models)" in both
    assert "caption level 1, split" in alone
    assert "caption level 1, split" not in both
    assert "--data.pairs, not set yet" in alone


def test_words_that_only_read_need_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ["--workspace", str(tmp_path)]
    folder = tmp_path / "embed" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"step": "emb')
    assert main(["status", "flickr8k", "--json", *workspace]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == []
    assert main(["verify", "flickr8k", *workspace]) == 1
    assert f"remedy: remove {folder}" in " ".join(capsys.readouterr().out.split())
    assert main(["plan", "debug", *workspace]) == 0
    assert "to run" in capsys.readouterr().out


def test_an_unreadable_record_of_the_recipe_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ["--workspace", str(tmp_path)]
    assert main(["status", "debug", "--json", *workspace]) == 0
    pool = next(
        row for row in json.loads(capsys.readouterr().out)["steps"] if row["step"] == "pool"
    )
    folder = tmp_path / "pool" / pool["fingerprint"]
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    assert main(["status", "debug", "--json", *workspace]) == 0
    states = {row["step"]: row["state"] for row in json.loads(capsys.readouterr().out)["steps"]}
    assert (states["pool"], states["embed"]) == ("damaged", "not run")
    assert main(["plan", "debug", *workspace]) == 0
    assert f"delete {folder} and run again" in capsys.readouterr().out
    assert main(["run", "debug", *workspace]) == 2


@pytest.mark.parametrize(
    ("words", "advised"),
    [
        (["show", "debug"], ["run", "debug"]),
        (["show", "debug", "train"], ["run", "debug", "--only", "train"]),
        (["logs", "debug", "curate"], ["submit", "debug", "--only", "curate"]),
        (["export", "debug", "--to", "x"], ["run", "debug", "--only", "train"]),
        (["demo", "debug"], ["run", "debug"]),
    ],
)
def test_an_advised_command_names_recipe_flags_and_workspace_as_a_shell_takes_them(
    words: list[str], advised: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's [my] space"
    further = ["--workspace", str(folder), "--train.seed", "3"]
    main([*words, *further])
    printed = capsys.readouterr()
    command = (printed.out + printed.err).split("`")[1]
    assert shlex.split(command) == ["python", "-m", "pipeline", *advised, *further]

    options = parse_words(shlex.split(command)[3:])
    assert options.workspace == folder


@pytest.mark.parametrize(
    "words",
    [
        ["run", "debug", "--train.seed", "3"],
        ["evaluate", "own", "--model", "a model", "--set", "x.tar", "retrieval:y"],
    ],
)
def test_a_damaged_output_is_answered_with_the_command_that_rebuilds_it(
    words: list[str], tmp_path: Path
) -> None:
    options = parse_words([*words, "--workspace", str(tmp_path)])
    command = f"{rebuilding(options)} --force train report"
    again = parse_words(shlex.split(command)[3:])
    assert again.force == ["train", "report"]
    for name in ("verb", "recipe", "workspace", "flags"):
        assert getattr(again, name) == getattr(options, name)
    if options.verb == "evaluate":
        assert again.model == options.model
        assert again.set == options.set


def test_a_description_is_printed_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["plan", "debug", "--workspace", str(tmp_path), "--description", "pairs of [/data] v2"]
        )
        == 0
    )
    assert "pairs of [/data] v2" in capsys.readouterr().out


def test_own_pairs_need_nothing_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs"
    recipe = tmp_path / "mine.yaml"
    pairs.mkdir()
    (pairs / "1.jpg").write_bytes(b"")
    (pairs / "1.txt").write_text("a dog")
    assert (
        main(["config", "own", "--data.pairs", str(pairs), "--embed.backbone", "random-vit"]) == 0
    )
    recipe.write_text(capsys.readouterr().out)
    assert main(["plan", str(recipe), "--workspace", str(tmp_path)]) == 0
    planned = capsys.readouterr().out
    assert "to run" in planned
    assert "cannot run yet" not in planned


def test_plan_of_the_papers_recipe_needs_neither_data_nor_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "vitl14", "--workspace", str(tmp_path), "--rows", "650000000"]) == 0
    printed = capsys.readouterr().out
    for figure in (
        "538,131,200",
        "25,326,336",
        "65,536 x 65,536",
        "347 TB",
        "embedding 650,000,000 pairs, once",
    ):
        assert figure in printed


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_debug_recipe_from_pairs_to_report(
    tmp_path: Path,
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = ["--workspace", str(tmp_path / "w")]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump_recipe(PRESETS["debug"]))
    assert main(["run", str(recipe), "--register", "small", *workspace]) == 0
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "registered small version 1" in printed
    assert f"pipeline demo {recipe}" in printed
    _check_registered(tmp_path / "w")
    _check_page(recipe, tmp_path / "w")

    # The preset and its file are one recipe.
    assert main(["status", "debug", "--json", *workspace]) == 0
    rows = json.loads(capsys.readouterr().out)["steps"]
    assert {row["state"] for row in rows} == {"done"}
    page = next((tmp_path / "w" / "report").glob("*/report.html")).read_text()
    assert 'src="http' not in page
    assert main(["show", "debug", "--json", *workspace]) == 0
    results = json.loads(capsys.readouterr().out)["model"]
    assert {result["task"] for result in results} == {"classification", "retrieval", "segmentation"}

    key = next(iter(_decided_keys(tmp_path / "w")))
    assert main(["show", "debug", "curate", key, *workspace]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == key

    assert main(["show", "debug", "train", key, *workspace, "--report.seed", "0"]) == 2
    advice = shlex.split(capsys.readouterr().err.split("`")[1])
    assert main(advice[3:]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == key

    assert main(["run", "debug", "--only", "train", "--train.optim.lr", "2e-3", *workspace]) == 0
    capsys.readouterr()
    assert main(["status", "debug", "--json", *workspace]) == 0
    rows = json.loads(capsys.readouterr().out)["steps"]
    # All before training was reused; the index is of the model with the recipe's own rate.
    assert [row["step"] for row in rows if not row["current"]] == ["train"]
    assert [row["current"] for row in rows if row["step"] == "index"] == [True]

    _damage_a_shard(tmp_path / "w")
    assert main(["verify", "debug", *workspace]) == 1
    assert "shard-00000.arrow" in capsys.readouterr().out
    assert main(["run", "debug", "--only", "train", "--train.optim.lr", "3e-3", *workspace]) == 2
    assert "--force embed" in capsys.readouterr().err
    # Outputs of other recipes are checked, too.
    assert main(["verify", "quickstart", *workspace]) == 1
    assert "remedy: remove" in capsys.readouterr().out.replace("\n", " ")


def _check_registered(workspace: Path) -> None:
    """The scores of every set are the model's, and its version answers."""
    client = mlflow.MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    version = client.get_model_version("small", "1")
    (model,) = client.search_logged_models([client.get_run(version.run_id).info.experiment_id])
    assert version.source == f"models:/{model.model_id}"
    scores = {metric.key: metric for metric in model.metrics}
    assert scores["retrieval/text_to_image_r1"].dataset_name == "retrieval"
    assert {name.split("/")[0] for name in scores} == {
        "classification",
        "retrieval",
        "segmentation",
    }


def _check_page(recipe: Path, workspace: Path) -> None:
    """The page finds images of the pool, their pixels, and what curation decided on them."""
    options = parse_words(["demo", str(recipe), "--workspace", str(workspace)])
    resolved = resolve_backbone(PRESETS["debug"])
    site = make_site(resolved, options, Console(file=io.StringIO()))
    page = TestClient(make_app(site, ["127.0.0.1"]), base_url="http://127.0.0.1")

    hits = page.get("/search", params={"words": "red heart", "count": 5}).json()["hits"]
    assert len(hits) == 5
    name = hits[0]["image"]
    heat = page.get(f"/heat/{name}", params={"words": "red heart"})
    assert np.asarray(Image.open(io.BytesIO(heat.content)))[..., 3].max() > 100
    assert page.get(f"/image/{name}").headers["content-type"] == "image/jpeg"
    (fate,) = page.get(f"/details/{name}").json()["fates"]
    assert fate["model"] == "curated"
    assert fate["text"].startswith("selected for training" if fate["is_kept"] else "dropped: ")


def _decided_keys(workspace: Path) -> list[str]:
    with pa.ipc.open_file(next((workspace / "curate").glob("*/decisions.arrow"))) as file:
        return file.read_all()["key"].to_pylist()


def _damage_a_shard(workspace: Path) -> None:
    records = [json.loads(path.read_text()) for path in (workspace / "embed").glob("*/record.json")]
    fingerprint = next(record["fingerprint"] for record in records if record["label"] == "embed")
    shard = workspace / "embed" / fingerprint / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
