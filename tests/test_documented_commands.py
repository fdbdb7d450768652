"""Every command of the README and the documents is one that `semantica` takes, word for word, and so is every script of it."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

import semantica.distributed.ingest
import semantica.jobs.command
from semantica.config import from_args
from semantica.evaluation.sets import ingest_settings
from semantica.jobs.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `semantica X ...` as a person types it, `python -m jobs.X ...` as a script is submitted.
NAMES = "|".join(sorted(COMMANDS, key=len, reverse=True))
TYPED = rf"semantica (?P<typed>{NAMES})|python -m jobs\.(?P<script>\w+)"
COMMAND = re.compile(rf"^(?! *[-|*>`])(?:.*?\s)??(?:{TYPED})(?P<words>(?:\s.*)?)$", re.MULTILINE)
REFUSED = re.compile(r"^```bash fails\n.*?^```$", re.MULTILINE | re.DOTALL)  # commands that show an error
# What the page on sweeps calls best.yaml is made by the sweep above it.
FILES = {"my.yaml": "{}", "runs/sweep/best.yaml": "{encodings: e, selection: s}"}


class ParsedError(Exception):
    """The words were taken."""


def commands() -> list[Any]:
    """(name of the command, words) of every command that a page shows whole."""
    shown = []
    for page in PAGES:
        text = REFUSED.sub("", page.read_text()).replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            name, words = match["typed"] or match["script"].replace("_", "-"), match["words"]
            if "..." not in words and "`" not in words:
                shown.append(pytest.param(name, shlex.split(words, comments=True), id=f"{page.name}: {name}{words}"))
    return shown


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"semantica.jobs.{name.replace('-', '_')}")


def test_pages_have_commands() -> None:
    assert {command.values[0] for command in commands()} >= {"train", "evaluate", "pipeline", "plan", "sweep"}


def test_the_documented_ingest_of_a_benchmark_is_that_of_pictures_given_to_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    words = next(of for name, of in (c.values for c in commands()) if name == "ingest" and "imagenet-val" in of)
    taken: list[Any] = []
    monkeypatch.setattr(semantica.distributed.ingest, "ingest", lambda config, **_: taken.append(config))
    assert module_of("ingest").main(words) == 0
    (config,) = taken
    expected = ingest_settings("imagenet-val", 256)
    assert replace(config, read=expected.read) == expected  # which pages are read together changes no picture


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_script_too_that_names_it(name: str) -> None:
    script = (ROOT / "jobs" / f"{name.replace('-', '_')}.py").read_text()
    assert f"`semantica {name}`" in script
    assert f"from semantica.jobs.{name.replace('-', '_')} import main" in script
    assert script.endswith('if __name__ == "__main__":\n    sys.exit(main())\n')


@pytest.mark.parametrize(("name", "words"), commands())
def test_a_command_of_the_documents_is_understood(
    name: str, words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*args: Any, **named: Any) -> NoReturn:
        from_args(*args, **named)
        raise ParsedError

    monkeypatch.setattr(semantica.jobs.command, "from_args", parsed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    for file, text in FILES.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(ParsedError):
        module_of(name).main([os.path.expandvars(word) for word in words])
