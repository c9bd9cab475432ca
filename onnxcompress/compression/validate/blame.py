"""The layers that hurt: those that alone cause much of the outputs' error."""

from __future__ import annotations

from onnxcompress.compression.build.builder import Builder, Built
from onnxcompress.compression.search.trade_off import Curves

SUSPECTS = 6  # At most so many layers are put back, one at a time: each one costs runs.
HURTS = 0.3  # A layer is named if more than this share of the outputs' error goes with it.


def find_hurting(builder: Builder, curves: Curves, built: Built) -> dict[str, float]:
    """Layers that alone cause much of the output's error on held-out samples: their share."""
    job, chosen = builder.job, built.chosen
    if job.held_out is None or len(built.fitted) < 2:
        return {}
    expected = {
        name: curves.sensitivities[name] ** 2 * (candidate.error or built.fitted[name].error)
        for name, candidate in chosen.items()
        if candidate.setting is not None and name in built.fitted
    }
    suspects = sorted(expected, key=lambda name: -expected[name])[:SUSPECTS]
    whole, shares = builder.loss_of(built), dict[str, float]()
    for name in job.settings.track(suspects, "looking for layers that hurt", len(suspects)):
        readers = job.readers(name)
        others = {key: f for key, f in built.fitted.items() if key not in readers}
        share = 1 - builder.loss(others) / max(whole, 1e-30)
        if share > HURTS:
            shares[name] = share
    return shares
