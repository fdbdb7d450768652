"""Every `python -m jobs.X` and `python -m tune.X` of the README and the documents is one that the command takes, word for word."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

import jobs.command
import jobs.ingest
from semantica.config import from_args
from semantica.distributed.evaluation_sets import ingest_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^(?! *[-|*>`]).*?\bpython -m ((?:jobs|tune)\.\w+)\b(.*)$", re.MULTILINE)
REFUSED = re.compile(r"^```bash fails\n.*?^```$", re.MULTILINE | re.DOTALL)  # commands that show an error
# What the page on sweeps calls best.yaml is made by the sweep above it.
FILES = {"my.yaml": "{}", "runs/sweep/best.yaml": "{encodings: e, selection: s}"}


class ParsedError(Exception):
    """The words were taken."""


def commands() -> list[Any]:
    """(module, words) of every command that a page shows whole."""
    found = []
    for page in PAGES:
        text = REFUSED.sub("", page.read_text()).replace("\\\n", " ")
        for module, rest in COMMAND.findall(text):
            if "..." not in rest and "`" not in rest:
                found.append(pytest.param(module, shlex.split(rest, comments=True), id=f"{page.name}: {module}{rest}"))
    return found


def test_pages_have_commands() -> None:
    assert {command.values[0] for command in commands()} >= {f"jobs.{name}" for name in ("train", "evaluate", "pipeline", "plan")}


def test_the_documented_ingest_of_a_benchmark_is_that_of_pictures_given_to_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    words = next(of for module, of in (c.values for c in commands()) if module == "jobs.ingest" and "imagenet-val" in of)
    taken: list[Any] = []
    monkeypatch.setattr(jobs.ingest, "ingest", lambda config, **_: taken.append(config))
    assert jobs.ingest.main(words) == 0
    (config,) = taken
    expected = ingest_settings("imagenet-val", 256)
    assert replace(config, read=expected.read) == expected  # which pages are read together changes no picture


@pytest.mark.parametrize(("module", "words"), commands())
def test_a_command_of_the_documents_is_understood(
    module: str, words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*args: Any, **named: Any) -> NoReturn:
        from_args(*args, **named)
        raise ParsedError

    monkeypatch.setattr(jobs.command, "from_args", parsed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    job = importlib.import_module(module)
    with pytest.raises(ParsedError):
        job.main([os.path.expandvars(word) for word in words])
