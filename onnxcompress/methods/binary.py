"""Binary: a layer's filters become stacks of ±1 filters with a few scales.  Smaller files.

Every filter (a row of the weight) is cut along its input channels into pieces of c channels.
The layer has m filters B_1 ... B_m of that size in {-1, +1}; a piece p selects one of them for
each of S stacks and adds them up with scales a (stored as float16)::

    W_p = sum over s of a[p, s] B[select[p, s]]

Where every piece has its own S filters nothing is selected and nothing shared: S bits a weight.
Shared, a layer takes ``m c k² + pieces S log2(m)`` bits, which reaches far below one.

Shared filters have two forms with the same weight.  The *weight form* puts the weight together
and convolves: it folds when the model is loaded, so speed is the original's.  The *feature form*
convolves every group of c channels with the m filters, then adds up what was selected by a 1x1
layer (split, transform, merge)::

    multiplications, feature / weight form = m (k² + out / c) / (out k²)

Both are fitted to the output error in the metric H of the inputs (see `error_feedback`):

* own: the levels of a row are all 2^S sums of its scales.  In turn: signs by error feedback and
  coordinate descent, scales by least squares in H; of a few rounds the best for each row.
* shared: pieces are coded in order in the metric that counts on the later ones to take back the
  error, which is fed to them; filters by coordinate descent given the pieces that select them.

References:
    Lan, Lan. Compressing deep convolutional neural networks by stacking low-dimensional binary
    convolution filters. AAAI 2021. https://arxiv.org/abs/2010.02778 (shared filters)
    Guo, Yao, Zhao, Chen. Network sketching. CVPR 2017. https://arxiv.org/abs/1706.02021 (stacks)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any, ClassVar, Literal

import numpy as np

from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.binary_forms.own import fit_own
from onnxcompress.methods.binary_forms.pieces import Form, metric_blocks
from onnxcompress.methods.binary_forms.shared import fit_shared
from onnxcompress.methods.binary_forms.stored import BinaryWeight
from onnxcompress.methods.integer import or_integer
from onnxcompress.methods.lookup.bits import pack
from onnxcompress.methods.lookup.error_feedback import WIDEST, cautious
from onnxcompress.methods.lookup.tables import fits_half

MOST_STACKS = 4  # There are at most so many stacks of signs; each takes a bit a weight.
# Shared filters are tried with these stacks, parts and share.
SHARED = ((2, 4, 0.5), (1, 4, 0.5), (1, 8, 0.5), (1, 8, 0.25))
# Below this share of the multiplications the feature form is faster, which was measured.
FASTER = 0.6
SMALL = 64  # Sharing is not tried for a layer of no more weights.


@dataclass(frozen=True)
class Binary(Method):
    """Store signs and a few scales instead of weights: a smaller file, the original's speed.

    Attributes:
        stacks: binary filters that are added up for each piece, 1 to 4.
        channels: input channels of a piece, c; by default all of them, or so many that a piece
            has at most 4096 weights.
        parts: the same as pieces of a filter.
        share: filters of the layer for each of its pieces, rounded to a power of two of them;
            at 1, the default, every piece has filters of its own.
        filters: the same as a number, a power of two.
        form: weight or feature; by default feature where it is likely to be faster.
    """

    opset: ClassVar[int] = 13

    stacks: int | None = None
    channels: int | None = None
    parts: int | None = None
    share: float | None = None
    filters: int | None = None
    form: Literal["weight", "feature"] | None = None

    def __post_init__(self) -> None:
        if self.stacks is not None and not 1 <= self.stacks <= MOST_STACKS:
            raise MethodError(f"stacks must be 1 to {MOST_STACKS}, got {self.stacks}")
        for name in ("channels", "parts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MethodError(f"{name} must be at least 1, got {value}")
        if self.channels is not None and self.parts is not None:
            raise MethodError("give channels or parts, not both")
        if self.share is not None and not 0 < self.share <= 1:
            raise MethodError(f"share must be above 0 and at most 1, got {self.share}")
        if self.filters is not None and (self.filters < 2 or self.filters & self.filters - 1):
            raise MethodError(f"filters must be a power of two, got {self.filters}")
        if self.form not in (None, "weight", "feature"):
            raise MethodError(f"form must be weight or feature, not {self.form}")
        if self.filters is not None and self.share is not None:
            raise MethodError("give share or filters, not both")

    @property
    def fixed(self) -> bool:
        return self.stacks is not None

    def settings(self, layer: Layer) -> list[Binary]:
        """Own filters with each number of stacks; where nothing is given, some shared ones too."""
        stacks = [self.stacks] if self.stacks else range(1, MOST_STACKS + 1)
        settings = [self._complete(layer, replace(self, stacks=count)) for count in stacks]
        if self == Binary() and layer.weight.size > SMALL:
            settings += [
                self._complete(layer, Binary(count, parts=parts, share=share))
                for count, parts, share in SHARED
            ]
        sizes = {setting: setting.nbytes(layer) for setting in settings}
        useful = {setting: size for setting, size in sizes.items() if size < layer.nbytes}
        return sorted(useful, key=lambda setting: useful[setting])

    def _complete(self, layer: Layer, setting: Binary) -> Binary:
        """The setting with its defaults, and with filters instead of a share below 1."""
        inputs = layer.weight.shape[1]
        widest = max(1, WIDEST // prod(layer.kernel))
        parts = setting.parts or -(-inputs // widest)
        channels = min(setting.channels or -(-inputs // parts), inputs)
        pieces = len(layer.weight) * -(-layer.weight.shape[1] // channels)
        filters = setting.filters
        if filters is None and (setting.share or 1) < 1:
            filters = 1 << max(1, round(log2(max(2, pieces * (setting.share or 1)))))
        share = None if filters else 1.0
        whole = Binary(setting.stacks, channels, share=share, filters=filters)
        return replace(whole, form=self._form(layer, channels, filters))

    def _form(self, layer: Layer, channels: int, filters: int | None) -> Any:
        """The form asked for, where this layer allows it; else the one that is likely faster."""
        out, inputs, *kernel = layer.weight.shape
        possible = layer.op_type == "Conv" and layer.groups == 1 and filters
        if not possible or inputs % channels or self.form == "weight":
            return "weight"
        share = (filters or 0) * (prod(kernel) + out / channels) / (out * prod(kernel))
        return "feature" if self.form or share < FASTER else "weight"

    def _pieces(self, layer: Layer) -> Form:
        """How a setting with nothing left open cuts the layer's weight up."""
        assert self.stacks and self.channels
        return Form(
            shape=layer.weight.shape,
            groups=layer.groups,
            stacks=self.stacks,
            channels=self.channels,
            filters=self.filters or 0,
            feature=self.form == "feature",
        )

    def nbytes(self, layer: Layer) -> int:
        form = self._pieces(layer)
        return sum(-(-bits // 8) for bits in form.bits) + 2 * form.scales

    def fit(self, layer: Layer, statistics: Statistics) -> CompressedWeight:
        form = self._pieces(layer)
        rows = form.split(layer.grouped.astype(np.float64))
        trusted = cautious(statistics)
        fits = [metric_blocks(trusted, g, form, rows.shape[2]) for g in range(layer.groups)]
        if self.filters:
            signs, select, scale = fit_shared(rows, fits, form)
            packed = pack(select, form.index_bits)
        else:
            signs, scale = fit_own(rows, fits, form)
            packed = np.zeros(0, np.uint8)
        kind = np.float16 if fits_half(2 * scale) else np.float32
        scale = (2 * scale).astype(kind)
        weight = BinaryWeight(pack(signs > 0, 1), packed, scale, form, layer.weight.dtype)
        alone = form.stacks == form.parts == 1 and not form.filters
        return or_integer(weight, layer, statistics) if alone else weight
