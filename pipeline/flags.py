"""The fields of a recipe as options of the command line, read by tyro.

tyro's own answer to a wrong option is a box of several lines; here one line names the option, its
value, what it must be, and what to do.
"""

import re
from collections.abc import Sequence
from functools import partial

import tyro
from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    ParseErrorEvent,
    UnrecognizedArgs,
    on_parse_error,
)

from cluster.words import nearest
from pipeline.options import ALWAYS, OPTIONS, SHORT, field_rows
from pipeline.recipes import Recipe

NO_NUMBER = re.compile(
    r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (.+)"
)
"""Python's words for text that is no number."""
CORRECT = "correct it, or leave it out for the recipe's own value"


def with_flags(recipe: Recipe, flags: Sequence[str], command: str) -> Recipe:
    """The recipe with the fields that `flags` set. ValueError says what is wrong with a flag."""
    words = [SHORT.sub(r"--embed.backbone.name\1", flag) for flag in flags]
    whole = (tyro.conf.AvoidSubcommands,)  # sections that may be absent are flags as well
    with on_parse_error(partial(_refuse, recipe, command)):
        return tyro.cli(Recipe, default=recipe, args=words, prog=command, config=whole)


def _refuse(recipe: Recipe, command: str, event: ParseErrorEvent) -> None:
    """ValueError for a flag that tyro refuses; events without a case are left to tyro's words."""
    match event:
        case UnrecognizedArgs(tokens=tokens):
            word = next((token for token in tokens if token.startswith("-")), tokens[0])
            name = word.partition("=")[0]
            names = [row.split()[0] for row, _ in field_rows(recipe)]
            names += [f"--{option.replace('_', '-')}" for option in (*OPTIONS, *ALWAYS)]
            raise ValueError(
                f"there is no option {name!r}{nearest(name, names)}; `{command} --help WORD` lists "
                "options by a word in them"
            )
        case InvalidChoice(argument=argument, value=value, choices=choices):
            raise ValueError(
                f"{argument.lowered.name_or_flags[0]} is {value!r}: must be one of "
                f"{', '.join(choices)}; {CORRECT}"
            )
        case BadValue(argument=argument):
            flag = argument.lowered.name_or_flags[0]
            metavar = argument.lowered.metavar
            raise ValueError(f"{flag} has too few values: {metavar} is required; {CORRECT}")
        case InstantiationFailure(message=message, argument=argument):
            if argument is None:
                raise ValueError(message)  # a config's own words
            flag = argument.lowered.name_or_flags[0]
            number = NO_NUMBER.fullmatch(message)
            what = f"{flag} is {number[1]}" if number else f"{flag}: {message}"
            raise ValueError(f"{what}: {argument.lowered.metavar} is required; {CORRECT}")
