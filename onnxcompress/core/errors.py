"""The errors that users see: each message is one line that says what is wrong and what to do."""


class OnnxCompressError(ValueError):
    """The base of all errors of this package that somebody's input, model or wish causes."""


class ModelError(OnnxCompressError):
    """A model that cannot be read, is invalid, or cannot be written."""


class DataError(OnnxCompressError):
    """Samples that cannot be used."""


class SamplesTypeError(DataError, TypeError):
    """An object that is no samples: the argument of a call from Python."""


class MethodError(OnnxCompressError):
    """A method or a setting that is unknown, or has no such value."""


class MetricError(OnnxCompressError):
    """A metric that is unknown or does not fit the outputs."""


class TargetError(OnnxCompressError):
    """What is needed to judge the target is missing; the message says what to give."""


class BudgetError(OnnxCompressError):
    """No choice of settings is cheap enough; the message names what can be attained."""


class ConfigError(OnnxCompressError):
    """A configuration file that cannot be used."""


class PageError(OnnxCompressError):
    """The report page cannot be made."""


class WorkerError(OnnxCompressError):
    """Work that was given to a process or a cluster did not come back."""


class RefineError(OnnxCompressError):
    """A model cannot be refined, or not as was asked."""


class TorchError(OnnxCompressError):
    """Torch cannot compute what a model does."""
