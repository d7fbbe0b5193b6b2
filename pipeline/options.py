"""The words of a command line: a verb, a recipe, further words and the verb's options.

All other options are fields of the recipe. argparse reads the words, because they may stand
anywhere among the options; tyro reads the fields. The help of a verb shows both; `--help WORD`
shows the options and fields that contain the word.
"""

import re
from argparse import (
    SUPPRESS,
    ArgumentError,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.endings import DONE, FAILED, INTERRUPTED, REQUEUE, USAGE
from cluster.words import counted, nearest
from pipeline.presets import PRESETS
from pipeline.recipe_file import field_docs
from pipeline.recipes import Recipe
from pipeline.verbs import VERBS

# `--embed.backbone NAME` is short for `--embed.backbone.name NAME`.
SHORT = re.compile(r"^--embed\.backbone(=.*)?$")
CODES = (
    f"exit codes: {DONE} done, {FAILED} failed, {USAGE} wrong usage, {INTERRUPTED} interrupted, "
    f"{REQUEUE} asked to stop (run the same command again)"
)
EXCLUSIVE = (
    ("only", "exactly"),
    ("json", "watch"),
    ("json", "csv", "markdown", "latex"),
    ("words", "csv", "markdown", "latex"),
    ("words", "model"),
)
"""Options of which a verb heeds one at most; `words` is a step."""
ALWAYS = ("verb", "recipe", "workspace", "verbose", "help", "flags")


def filled(word: str) -> str:
    """A word that is not empty, as argparse converts it."""
    if not word:
        raise ArgumentTypeError("it is empty, and a value is required")
    return word


def path(word: str) -> Path:
    """A path; an empty word, which Path would read as the present folder, is none."""
    return Path(filled(word))


def whole(word: str) -> int:
    """A whole number."""
    if not re.fullmatch(r"[+-]?\d+", word):
        raise ArgumentTypeError(f"it is {word!r}, and a whole number is required")
    return int(word)


def port(word: str) -> int:
    """The number of a port."""
    number = whole(word)
    if not 1 <= number <= 65535:
        raise ArgumentTypeError(f"it is {number}, and must be from 1 to 65535")
    return number


class Option(NamedTuple):
    """An option that one or more verbs have."""

    text: str
    metavar: str | None = None
    kind: Callable[[str], object] = filled
    is_list: bool = False

    def add_to(self, parser: ArgumentParser, name: str) -> None:
        """Add the option to a parser; without a metavar it is a switch."""
        name = name.replace("_", "-")
        if self.metavar is None:
            parser.add_argument(f"--{name}", action="store_true", help=self.text)
        elif self.is_list:
            parser.add_argument(
                f"--{name}",
                nargs="+",
                type=self.kind,
                default=[],
                metavar=self.metavar,
                help=self.text,
            )
        else:
            default = 0 if self.kind is whole else None
            parser.add_argument(
                f"--{name}", type=self.kind, default=default, metavar=self.metavar, help=self.text
            )


OPTIONS = {
    "only": Option("run these steps and any missing inputs", "STEP", is_list=True),
    "exactly": Option("run these steps alone; what they need must be done", "STEP", is_list=True),
    "force": Option(
        "rerun these steps and everything downstream, done or not", "STEP", is_list=True
    ),
    "rows": Option("number of pairs in the pool, if it is not embedded yet", "N", whole),
    "measure": Option("time reading and the backbone on this machine"),
    "cluster": Option(
        "site file of a SLURM cluster (`cluster template` prints one), or http://HEAD:8265 of a Ray "
        "cluster",
        "SITE",
    ),
    "one_job": Option("one allocation for everything, with room for every step"),
    "dry_run": Option("print the sbatch scripts, submit nothing"),
    "watch": Option("print again every few seconds until no job is waiting or running"),
    "follow": Option("go on until the job has ended"),
    "json": Option("print JSON"),
    "csv": Option("print the scores as comma-separated values"),
    "markdown": Option("print the scores as a Markdown table"),
    "latex": Option("print the scores as a LaTeX table"),
    "to": Option("write the formats into folders below this one", "FOLDER", path),
    "format": Option("write only these formats", "FORMAT", is_list=True),
    "backbone": Option(
        "copy: write the backbone's weights; reference: name them on the hub, with digest", "FORM"
    ),
    "int8": Option("write int8 forms of the ONNX graphs as well"),
    "model": Option(
        "this model folder instead of the recipe's; with evaluate, "
        "open_clip:ARCHITECTURE:WEIGHTS too",
        "FOLDER",
        path,
    ),
    "images": Option("search this folder or tar instead of the pool", "FOLDER", path),
    "port": Option("serve the page on this port, not on 7860", "PORT", port),
    "host": Option("serve the page on this address of the machine, not on 127.0.0.1", "ADDRESS"),
    "register": Option("add the trained model to MLflow's registry under this name", "NAME"),
    "set": Option("evaluation sets, [TASK:]PATH[@VARIANT]", "SET", is_list=True),
}


def parse_words(words: Sequence[str]) -> Namespace:
    """The options of a command; `flags` holds the words about fields of the recipe.

    ValueError for an unknown verb, or a word or option that the verb does not have.
    """
    try:
        options, flags = _parser().parse_known_intermixed_args(words)
    except ArgumentError as error:
        raise ValueError(
            f"{error.argument_name}: {error.message}; correct it, or leave it out"
        ) from error
    options.flags = flags
    if options.verb is None:
        _parser().print_help()
        raise SystemExit(DONE if options.help is not None else USAGE)
    if options.verb not in VERBS:
        raise ValueError(
            f"there is no verb {options.verb!r}{nearest(options.verb, VERBS)}; verbs: "
            f"{', '.join(VERBS)}"
        )

    # Every option is known to one parser, so that an option of another verb gets its own message.
    verb = VERBS[options.verb]
    if options.recipe is None and verb.needs == "source" and options.help is None:
        raise ValueError(f"`{options.verb}` needs the path of image-caption pairs: add it")
    if options.recipe is not None and options.verb == "recipes":
        raise ValueError(f"`recipes` has no word {options.recipe}: leave it out")
    options.recipe = options.recipe or verb.recipe
    if verb.needs == "nothing" and flags:
        raise ValueError(f"`{options.verb}` has no option {' '.join(flags)}: leave it out")

    for name, value in vars(options).items():
        if value and name not in (*verb.takes, *ALWAYS):
            option = (
                f"word {' '.join(value)}"
                if name == "words"
                else f"option --{name.replace('_', '-')}"
            )
            takers = ", ".join(other for other, entry in VERBS.items() if name in entry.takes)
            raise ValueError(f"`{options.verb}` has no {option} (only {takers}): leave it out")

    _check_words(options)
    return options


def _check_words(options: Namespace) -> None:
    """ValueError for words that a verb would ignore, and for options that exclude each other."""
    verb = VERBS[options.verb]
    further = options.words[verb.most_words :]
    if further:
        raise ValueError(
            f"`{options.verb}` takes {counted(verb.most_words, 'word')} after {options.recipe!r}, "
            f"and {' '.join(further)!r} is more: leave it out"
        )

    for group in EXCLUSIVE:
        passed = [name for name in group if getattr(options, name)]
        if len(passed) > 1 and not set(passed) - {*verb.takes}:
            names = [
                options.words[0] if name == "words" else f"--{name.replace('_', '-')}"
                for name in passed
            ]
            raise ValueError(
                f"{' and '.join(names)} exclude each other with `{options.verb}`: leave one out"
            )


def _parser() -> ArgumentParser:
    """The parser of all words except the fields of a recipe."""
    listing = "\n".join(f"  {name:<9} {verb.text}" for name, verb in VERBS.items())
    parser = ArgumentParser(
        prog="python -m pipeline",
        description=f"{listing}\n\nrecipes: {', '.join(PRESETS)}, or a YAML file",
        epilog="every field of the recipe is an option too, such as --train.optim.lr 3e-4; "
        f"`VERB RECIPE --help [WORD]` lists them. {CODES}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help=SUPPRESS)
    parser.add_argument(
        "recipe", nargs="?", type=filled, metavar="RECIPE", help="default: quickstart"
    )
    parser.add_argument(
        "words",
        nargs="*",
        type=filled,
        metavar="STEP [KEY]",
        help="with show, logs and export: a step; with show, a key; with cluster, a site file",
    )
    parser.add_argument(
        "--workspace", type=path, default=Path("workspace"), help="folder of all outputs"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print every log line, and the workers' output"
    )
    parser.add_argument(
        "--help", "-h", nargs="?", const="", metavar="WORD", help="help, on lines with WORD"
    )
    for name, option in OPTIONS.items():
        takers = ", ".join(verb for verb, entry in VERBS.items() if name in entry.takes)
        # The general help has all options of all verbs, each with the verbs that have it.
        option._replace(text=f"with {takers}: {option.text}").add_to(parser, name)

    return parser


def print_help(verb: str, recipe: Recipe | None, word: str, console: Console) -> None:
    """Print a verb's options, then the fields of the recipe with their values, by section.

    With a `word`, only the lines that contain it, in any case of letters.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    names = [*(name for name in VERBS[verb].takes if name in OPTIONS)]
    rows = [
        (f"--{name.replace('_', '-')} {OPTIONS[name].metavar or ''}", OPTIONS[name].text)
        for name in names
    ]
    rows += [("--workspace FOLDER", "folder of all outputs"), ("--verbose", "print every log line")]
    rows += list(field_rows(recipe)) if recipe else []

    section = ""

    for flag, text in rows:
        if word.lower() not in f"{flag} {text}".lower():
            continue

        # A blank line between sections: "--train.optim.lr 0.001" is in section "--train.optim".
        here = flag.split()[0].rpartition(".")[0]
        if here != section:
            section = here
            table.add_row("", "")
        table.add_row(escape(flag), escape(text))

    console.print(f"[b]python -m pipeline {verb}[/b]: {VERBS[verb].text}\n")
    console.print(table)
    console.print(f"\n{CODES}", soft_wrap=True)


def field_rows(config: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The flag of every field with its value, and its documentation."""
    docs = field_docs(type(config))  # type: ignore[arg-type]
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        flag = f"{prefix}{item.name}".replace("_", "-")
        if is_dataclass(value):
            yield from field_rows(value, f"{flag}.")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield f"--{flag} {shown}".rstrip(), docs.get(item.name, "")
