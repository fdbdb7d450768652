"""The errors a user may see: one sentence each, naming the field, what was expected, what was got and the remedy.

Jobs print them as one line and exit with code 2; every other exception is a defect of this project and keeps its traceback.
"""

from __future__ import annotations


class SemanticaError(ValueError):
    """Base of every error whose message is written for a user."""


class ConfigError(SemanticaError):
    """A configuration that is refused before anything starts."""


class FieldError(ConfigError):
    """A field whose value is refused.

    owner: the `@config` class that declares the field, or None where a caller's argument is refused. field: its dotted path from
    there. problem: what is wrong with the value, as the rest of the sentence. A command adds the flag and the YAML path.
    """

    def __init__(self, owner: type | None, field: str, problem: str) -> None:
        super().__init__(owner, field, problem)
        self.owner, self.field, self.problem = owner, field, problem

    def __str__(self) -> str:
        return f"{self.field} {self.problem}"

    def under(self, owner: type, *parents: str | int) -> FieldError:
        """The same refusal, with `field` as seen from `owner`, whose fields `parents` lead to it."""
        return FieldError(owner, ".".join([*map(str, parents), self.field]), self.problem)


class DataError(SemanticaError):
    """Input or a stage's output that is missing, incomplete, damaged, or made by something else."""


class Stopped(SemanticaError):
    """The user asked to stop. What was done is saved, the output is not finished, and the same command goes on: no failure."""


class WeightsError(SemanticaError):
    """Pretrained weights or a checkpoint that are missing, damaged, or not what their name says."""


class AbsentWeights(WeightsError):
    """Pretrained weights that are not on this machine: the sentence says which file to put where."""
