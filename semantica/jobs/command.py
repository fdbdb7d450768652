"""What every command shares: the preset, the YAML, the flags, two lengths of help, and errors as one line with an exit code."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from semantica.config import fail, from_args, take_flag
from semantica.errors import ConfigError, DataError, SemanticaError, Stopped
from semantica.jobs.flags import Setting, flags_of_paths, placed, setting
from semantica.presets import PRESETS, PipelineConfig, preset

T = TypeVar("T")
_TYPES = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command, before anything heavy is loaded.

    sections: the settings that a preset gives. common: what `--help` shows, by YAML path, with one line for each.
    """

    name: str
    about: str
    settings: type[T]
    sections: Callable[[PipelineConfig], dict[str, object]]
    common: Mapping[str, str]
    default_preset: str = "tiny"

    def run(self, call: Callable[[T], int | None], argv: Sequence[str] | None = None) -> int:
        """Parse `argv` with the settings of the preset as defaults, and call. Returns the exit code, which `call` may give."""
        try:
            words, name = take_flag(sys.argv[1:] if argv is None else argv, "--preset")
            defaults = self.sections(preset(name or self.default_preset))
            if {"-h", "--help"} & set(words):
                print(self.short_help(defaults, name or self.default_preset))
                return 0
            return call(self._parsed(words, defaults)) or 0
        except Stopped as stopped:  # as asked: nothing went wrong
            print(stopped, file=sys.stderr)
            return 0
        except ConfigError as error:
            return fail(ConfigError(placed(error, self.settings)))
        except SemanticaError as error:
            return fail(error)
        except Exception as error:
            from semantica.data.location import explained, is_storage_error

            if is_storage_error(error):  # a full disk, a bucket that is not ours
                file = f", {error.filename}" if isinstance(error, OSError) and error.filename else ""
                return fail(DataError(f"storage: {explained(error)}{file}; run the same command to resume"))
            raise
        except KeyboardInterrupt:
            print("interrupted; the same command resumes where it stopped", file=sys.stderr)
            return 130

    def _parsed(self, words: Sequence[str], defaults: Mapping[str, object]) -> T:
        words = ["--help" if word == "--help-all" else word for word in flags_of_paths(self.settings, list(words))]
        text = f"{self.about}\n\n{inspect.cleandoc(self.settings.__doc__ or '')}\n\n{self._presets(self.default_preset)}"
        return from_args(self.settings, words, prog=f"semantica {self.name}", description=text, defaults=defaults)

    def short_help(self, defaults: Mapping[str, object], preset_name: str) -> str:
        """The common settings, one by one, with their defaults; how to see and set the others."""
        width = min(120, shutil.get_terminal_size().columns)
        rows = [(one, text, _default(self.settings, defaults, one.path)) for one, text in self._common()]
        required = [_words(one, value) for one, _, value in rows if value is dataclasses.MISSING]
        lines = [*textwrap.wrap(" ".join(["usage: semantica", self.name, *required, "[settings]"]), width), ""]
        lines += [*textwrap.wrap(self.about, width), ""]
        for one, text, value in rows:
            head = f"  {_words(one, value)}"
            note = "required" if value is dataclasses.MISSING else f"default: {_shown(value)}"
            body = textwrap.wrap(f"{text} ({note})", width - 34)
            lines += [f"{head:<33} {body[0]}"] if len(head) < 33 else [head, " " * 34 + body[0]]
            lines += [" " * 34 + rest for rest in body[1:]]
        lines += ["", *textwrap.wrap(self._presets(preset_name), width)]
        lines += ["--config FILE reads settings from YAML; flags override them.", f"All settings: semantica {self.name} --help-all"]
        return "\n".join(lines)

    def _common(self) -> list[tuple[Setting, str]]:
        found = [(setting(self.settings, path), path, text) for path, text in self.common.items()]
        unknown = [path for one, path, _ in found if one is None]
        assert not unknown, f"{self.name}: the help names {unknown}, which are no settings"
        return [(one, text) for one, _, text in found if one is not None]

    def _presets(self, name: str) -> str:
        return f"--preset NAME sets the defaults; here {name}. There are: {', '.join(PRESETS)}."


def _default(cls: type, defaults: Mapping[str, object], path: str) -> Any:
    """The value of a setting when no flag is given; MISSING where one must be."""
    first, *rest = path.split(".")
    value = defaults.get(first, next(field.default for field in dataclasses.fields(cls) if field.name == first))
    for name in rest:
        value = getattr(value, name)
    return value


def _words(one: Setting, default: Any) -> str:
    """What a person types to change a setting: the flag and the kind of its value; of a switch the word that turns it over."""
    if one.kind is not bool:
        return f"{one.flag} {_type(one.kind)}"
    *sections, last = one.flag[2:].split(".")
    return "--" + ".".join([*sections, f"no-{last}" if default else last])


def _type(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"{_type(arguments[0])} ..."
    if origin is typing.Literal:
        names = ",".join(map(str, arguments))
        return f"{{{names}}}" if len(names) <= 40 else "NAME"
    return _TYPES.get(kind, "VALUE")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_shown, value)) or "none"
    return "none" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def shown_command(name: str, argv: Sequence[str] | None) -> str:
    """The command as a person would type it, for a report."""
    return shlex.join(["semantica", name, *(sys.argv[1:] if argv is None else argv)])
