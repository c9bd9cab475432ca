"""The errors that users see: each message is one line that says what is wrong and what to do."""

from typing import Any


class OnnxCompressError(ValueError):
    """The base of all errors of this package that somebody's input, model or wish causes."""


class ModelError(OnnxCompressError):
    """A model that cannot be read, is invalid, or cannot be written."""


class SlowError(ModelError):
    """A model that does not come to an end in the time that it has."""


class DataError(OnnxCompressError):
    """Samples that cannot be used."""


class UnfitError(DataError):
    """Samples on which the original itself does not run."""


class SamplesTypeError(DataError, TypeError):
    """An object that is no samples: the argument of a call from Python."""


class OutputError(OnnxCompressError):
    """A file that cannot be written where it was to be."""


class MethodError(OnnxCompressError):
    """A method or a setting that is unknown, or has no such value."""


class MetricError(OnnxCompressError):
    """A metric that is unknown or does not fit the outputs."""


class TargetError(OnnxCompressError):
    """What is needed to judge the target is missing; the message says what to give."""


class BudgetError(OnnxCompressError):
    """No choice of settings is cheap enough; the message names what can be attained."""


class ArgumentError(OnnxCompressError):
    """An argument of a call from Python that cannot be what it is."""


class PatternError(OnnxCompressError):
    """A pattern of names that no layer has."""


class ConfigError(OnnxCompressError):
    """A configuration file that cannot be used."""


class PageError(OnnxCompressError):
    """The report page cannot be made."""


class TableError(OnnxCompressError):
    """A report cannot be made a table of another library."""


class CompressionError(OnnxCompressError):
    """A result that is worse, or misses its target, and was not written.

    Attributes:
        report: what came of it; ``report.failures`` are the reasons.
    """

    def __init__(self, report: Any) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return f"{'; '.join(self.report.failures)}; nothing was written (force=True writes it)"


class WorkerError(OnnxCompressError):
    """Work that was given to a process or a cluster did not come back."""


class RefineError(OnnxCompressError):
    """A model cannot be refined, or not as was asked."""


class TorchError(OnnxCompressError):
    """Torch cannot compute what a model does."""
