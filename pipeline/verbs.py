"""The verbs of the command line, in one table: what each says, does, needs and takes."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from pipeline import commands, job_commands

Needs = Literal["nothing", "source", "recipe", "weights"]
"""nothing: no recipe; source: a path in the place of a recipe, whose fields say how to read it;
recipe: as it is named; weights: its backbone named, with the digest of its weights.
"""


class Verb(NamedTuple):
    """One verb; `takes` names its options besides --workspace and --verbose, and `words` further
    words.
    """

    text: str
    needs: Needs
    call: Callable[..., int]
    """With the recipe, where one is needed, the options and the terminal; gives the exit code."""
    takes: tuple[str, ...] = ()
    recipe: str = "quickstart"
    """The recipe where none is named; empty where a word is required."""
    most_words: int = 0
    """How many further words it takes at most."""
    computes: bool = False
    """Whether it starts the steps of the recipe."""


VERBS = {
    "recipes": Verb("list the recipes", "nothing", commands.recipes),
    "config": Verb(
        "print the recipe as YAML, with the documentation of every field", "recipe", commands.config
    ),
    "inspect": Verb(
        "show what would be read of the pairs at PATH and how; set what is wrong with "
        "--embed.source.*",
        "source",
        commands.inspect,
        recipe="",
    ),
    "plan": Verb(
        "what would run, what is done and what it costs; with --cluster, as which jobs; runs nothing",
        "recipe",
        commands.plan,
        ("only", "force", "rows", "measure", "cluster", "one_job"),
    ),
    "run": Verb(
        "run what is not done yet",
        "weights",
        commands.run,
        ("only", "exactly", "force", "register"),
        computes=True,
    ),
    "evaluate": Verb(
        "score a --model on every --set, without pairs and without training",
        "weights",
        commands.evaluate,
        ("model", "set", "force", "only"),
        "own",
        computes=True,
    ),
    "submit": Verb(
        "run as SLURM jobs, one per step, on the cluster that --cluster describes; or as a Ray job",
        "weights",
        job_commands.submit,
        ("cluster", "one_job", "dry_run", "only", "force"),
        computes=True,
    ),
    "status": Verb(
        "list every output of the workspace with its summary, and the jobs that make the others",
        "recipe",
        job_commands.status,
        ("json", "watch"),
    ),
    "logs": Verb(
        "print the logs of the last job of STEP",
        "weights",
        job_commands.logs,
        ("words", "follow"),
        most_words=1,
    ),
    "cancel": Verb("end the jobs of a recipe", "weights", job_commands.cancel),
    "cluster": Verb(
        "`template` prints a site file; `check SITE.yaml` tries what it describes on the cluster",
        "nothing",
        job_commands.cluster,
        ("words",),
        most_words=1,
    ),
    "show": Verb(
        "print the scores; the record of one STEP; or why curation selected or dropped the "
        "pair KEY",
        "weights",
        commands.show,
        ("words", "json", "csv", "markdown", "latex"),
        most_words=2,
    ),
    "verify": Verb(
        "check every output of the workspace against its record and checksums",
        "recipe",
        commands.verify,
    ),
    "export": Verb(
        "write a trained model as safetensors, dinotxt, huggingface and onnx, each compared with "
        "the model",
        "weights",
        commands.export,
        ("words", "to", "format", "model", "backbone", "int8"),
        most_words=1,
    ),
    "demo": Verb(
        "search the pool, or a folder of images, on a web page of this machine",
        "weights",
        commands.demo,
        ("images", "port", "host"),
    ),
}
