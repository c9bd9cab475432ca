"""What a model reads in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sample = Mapping[str, Any]  # It maps an input's name to its batch, an array or a list of arrays.
