"""`semantica`: the first screen, and the subcommand that the first word names. Loads the module of that subcommand only."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from semantica.config import fail
from semantica.errors import ConfigError

GROUPS = {
    "Start here": {
        "quickstart": "make a small model and its report in minutes on 2 cores, on example pictures or your own",
        "pipeline": "train on your pictures: all stages below with one configuration",
        "doctor": "check machine, cluster, storage and weights, and say what to do",
        "plan": "hours, memory, storage and cost of an experiment, before it starts",
    },
    "One stage at a time": {
        "ingest": "your pages or folders of pictures -> episodes",
        "encode": "episodes -> encodings, by a frozen pretrained encoder",
        "pairs": "encodings -> the pairs whose similarity is in a band",
        "train": "encodings and pairs -> a trained model",
        "generate": "a trained model -> samples, drawn from held-out pictures",
        "evaluate": "trained models -> the paper's figures and a report",
    },
    "Then": {
        "sweep": "train with different settings and report which are best",
        "apply": "edit, inpaint, vary or invert the pictures of a folder with a trained model",
        "release": "a trained model -> a folder to share, for semantica.load",
    },
}
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}


def screen() -> str:
    """What `semantica` prints without a subcommand."""
    lines = ["semantica draws new pictures with the meaning of a given one, by a model that you train.", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<17} {line}" for name, line in commands.items())]
    return "\n".join([*lines, "", "Common settings of a command: semantica COMMAND --help. All of them: --help-all."])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the subcommand that the first word names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(screen())
        return 0
    if words[0] == "--version":
        print(f"semantica {_version()}")
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(COMMANDS)}"
        return fail(ConfigError(f"no command {words[0]!r}; {hint}"))
    module = importlib.import_module(f"semantica.jobs.{words[0].replace('-', '_')}")
    exit_code: int = module.main(words[1:])
    return exit_code


def _version() -> str:
    try:
        return version("semantica")
    except PackageNotFoundError:
        return "(a checkout that is not installed)"
