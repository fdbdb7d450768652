"""`semantica`: the first screen, the subcommands by name, and that none of it loads what only the work needs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from semantica.jobs.cli import COMMANDS, main, screen
from semantica.jobs.flags import settings
from semantica.presets import preset

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "transformers", "mlflow", "pandas", "scipy", "matplotlib", "torchvision")


def command(name):
    return importlib.import_module(f"semantica.jobs.{name.replace('-', '_')}").COMMAND


def test_the_first_screen_names_every_command_in_25_lines(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 110
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)
    scripts = [*(ROOT / "jobs").glob("[a-z]*.py"), ROOT / "tune" / "sweep.py"]
    moved = {"evaluate-samples"}  # says which command does it now
    assert {path.stem.replace("_", "-") for path in scripts} - moved == set(COMMANDS)


def test_an_unknown_command_is_refused_with_the_nearest_name(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: no command 'trian'; did you mean 'train'?\n"
    assert main(["zzz"]) == 2
    assert "there are: quickstart, pipeline" in capsys.readouterr().err


def test_the_first_word_chooses_the_command_and_the_rest_are_its_words(capsys):
    assert main(["ingest", "--preset", "finale"]) == 2
    assert "no preset 'finale'; did you mean 'final'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_some_common_settings_with_their_defaults_and_the_way_to_all(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: semantica {name}")
    assert 5 <= len(command(name).common) <= 15
    known = {one.path: one for one in settings(command(name).settings) if one.path in command(name).common}
    assert len(known) == len(command(name).common)
    assert all(f"  {one.flag} " in shown for one in known.values() if one.kind is not bool)
    assert f"semantica {name} --help-all" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_required_settings_and_no_others_stand_in_the_usage(name, capsys):
    main([name, "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0].split()
    job = command(name)
    given = job.sections(preset(job.default_preset))
    fields = dataclasses.fields(job.settings)
    required = [f"--{f.name}" for f in fields if f.default is dataclasses.MISSING and f.name not in given]
    assert [word for word in usage if word.startswith("--")] == required


def test_help_shows_the_defaults_of_the_preset(capsys):
    main(["train", "--preset", "base", "--help"])
    assert "continues a finished training (default: 300000)" in " ".join(capsys.readouterr().out.split())


def test_help_shows_of_a_switch_the_word_that_turns_it_over(capsys):
    main(["encode", "--help"])
    assert "  --no-store-tokens " in (shown := capsys.readouterr().out)
    assert "(default: on)" in " ".join(shown.split())
    main(["train", "--help"])
    assert "  --cluster.use-gpu " in capsys.readouterr().out


def test_help_all_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help-all"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    fields = [one for one in settings(command("train").settings) if not dataclasses.is_dataclass(one.kind)]
    numbered = ("train.denoiser.stages", "train.denoiser.signals")  # the elements' flags have numbers
    flags = [one.flag for one in fields if not one.path.startswith(numbered)]
    assert [flag for flag in flags if not re.search(rf"{flag}(?![\w.-])", shown)] == []


def fresh(code):
    """What a new process prints, and the seconds of CPU it took."""
    wrapped = f"import json, os, sys; {code}; t = os.times(); print(json.dumps([t.user + t.system, sorted(sys.modules)]))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", wrapped], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_loads_nothing_heavy_and_answers_within_two_seconds(name):
    words = [name, "--help"] if name else []
    seconds, loaded = fresh(f"from semantica.jobs.cli import main; assert main({words}) == 0")
    assert not set(HEAVY) & set(loaded)
    assert seconds < 2


def test_the_package_is_a_command_without_being_installed(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "semantica"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == screen() + "\n"


def test_a_script_of_the_checkout_takes_the_words_of_the_command():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobs.pairs", "--help"], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: semantica pairs")


def test_the_wheel_holds_the_package_semantica_and_one_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = find_packages(str(ROOT), **project["tool"]["setuptools"]["packages"]["find"])
    assert {name.split(".")[0] for name in packages} == {"semantica"}
    assert {"semantica.jobs", "semantica.distributed", "semantica.episodes.sources"} <= set(packages)
    assert project["project"]["scripts"] == {"semantica": "semantica.jobs.cli:main"}
