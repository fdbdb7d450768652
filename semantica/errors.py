"""The errors a user may see: one sentence each, naming the field, what was expected, what was got and the remedy.

Jobs print them as one line and exit with code 2; every other exception is a defect of this project and keeps its traceback.
"""


class SemanticaError(ValueError):
    """Base of every error whose message is written for a user."""


class ConfigError(SemanticaError):
    """A configuration that is refused before anything starts."""


class DataError(SemanticaError):
    """Input or a stage's output that is missing, incomplete, damaged, or made by something else."""


class Stopped(SemanticaError):
    """The user asked to stop. What was done is saved, the output is not finished, and the same command goes on: no failure."""


class WeightsError(SemanticaError):
    """Pretrained weights or a checkpoint that are missing, damaged, or not what their name says."""


class AbsentWeights(WeightsError):
    """Pretrained weights that are not on this machine: the sentence says which file to put where."""
