"""What a model reads in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sample = Mapping[str, Any]  # input name -> batch, an array or a list of arrays
