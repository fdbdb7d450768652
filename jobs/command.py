"""What every command shares: the preset, the YAML, the flags, and errors as one line with a non-zero exit code."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from semantica.config import fail, from_args, take_flag
from semantica.data.location import explained, is_storage_error
from semantica.errors import DataError, SemanticaError, Stopped
from semantica.presets import PRESETS, PipelineConfig, preset

T = TypeVar("T")


def run(
    cls: type[T],
    call: Callable[[T], object],
    *,
    prog: str,
    description: str,
    sections: Callable[[PipelineConfig], dict[str, object]],
    default_preset: str = "tiny",
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv` into `cls`, with `sections` of the preset as defaults, and call. Returns the exit code."""
    try:
        words, name = take_flag(sys.argv[1:] if argv is None else argv, "--preset")
        defaults = sections(preset(name or default_preset))
        about = inspect.cleandoc(cls.__doc__ or "")
        text = f"{description}\n\n{about}\n\n--preset NAME (default {default_preset}) sets the defaults: {', '.join(PRESETS)}."
        call(from_args(cls, words, prog=f"python -m {prog}", description=text, defaults=defaults))
    except Stopped as stopped:  # as asked: nothing went wrong
        print(stopped, file=sys.stderr)
        return 0
    except SemanticaError as error:
        return fail(error)
    except Exception as error:
        if is_storage_error(error):  # a full disk, a bucket that is not ours
            return fail(DataError(f"storage: {explained(error)}; run the same command to go on"))
        raise
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def shown_command(module: str, argv: Sequence[str] | None) -> str:
    """The command as a person would type it, for the report."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])
