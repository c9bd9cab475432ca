"""Samples on which the original itself fails: no result is to blame for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxcompress.core.errors import ModelError, SlowError, UnfitError
from onnxcompress.data.samples import Samples
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import session_of
from onnxcompress.graph import Model


@contextmanager
def blaming(original: Model, samples: Samples, real: bool = True) -> Iterator[None]:
    """Blame the samples where the original does not run on them.

    Args:
        real: whether they are somebody's, and not made up.

    Raises:
        UnfitError: it does not run; the first such sample is named.
    """
    try:
        yield
    except SlowError:  # It would be as slow once more.
        raise
    except ModelError as error:
        raise _unfit(original, samples, error, real) from None


def _unfit(original: Model, samples: Samples, error: ModelError, real: bool) -> UnfitError:
    """What to say; each sample is run alone until one fails."""
    if not real:
        return UnfitError(
            "the original itself does not run on some random inputs: give samples=... or "
            f"shapes=..., whose values and shapes suit it ({error})"
        )
    session, step = session_of(runnable(original)), samples.batch if samples.exact else 1
    for start in range(0, len(samples), step):
        numbers = samples.index[start : start + step]
        try:
            session.run(samples.read(numbers))
        except ModelError as alone:
            which = f"sample {numbers[0]}" + f" to {numbers[-1]}" * (len(numbers) > 1)
            return UnfitError(
                f"the original itself does not run on {which} of samples=... ({alone})"
            )
    return UnfitError(f"the original itself does not run on some batches of samples=... ({error})")
