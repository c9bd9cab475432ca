"""What a configuration file says: options of `compress`, and methods for some of the layers.

::

    ratio: 8                                  # any option, without its dashes
    calib: samples.npz
    op_types:
      Gemm: {method: "integer:bits=8"}        # for layers of this kind
    layers:
      "stage1/*": {method: [half, integer]}   # for layers whose names match
      stem/conv: {skip: true}

Options are for all layers, ``op_types`` go before them, and ``layers`` before these; of several
patterns that match, the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxcompress.compression.choose_layers import matches
from onnxcompress.core.errors import ConfigError
from onnxcompress.core.messages import nearest
from onnxcompress.data.preprocess import read_yaml


class Rule(BaseModel):
    """What is done with some of the layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str | tuple[str, ...] = Field(default=(), description="what to use, as --method")
    skip: bool = Field(default=False, description="leave these layers as they are")

    @property
    def specs(self) -> tuple[str, ...]:
        return (self.method,) if isinstance(self.method, str) else self.method


class Rules(BaseModel):
    """Rules by kind of layer, and by patterns of names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op_types: dict[str, Rule] = Field(default={}, description="operator -> rule")
    layers: dict[str, Rule] = Field(default={}, description="pattern of layer names -> rule")

    def of(self, name: str, op_type: str) -> Rule | None:
        """The rule for a layer; None if there is none."""
        rules = [rule for pattern, rule in self.layers.items() if matches(name, pattern)]
        return rules[-1] if rules else self.op_types.get(op_type)


def read(path: Path, known: Iterable[str]) -> tuple[dict[str, Any], Rules]:
    """The options in a file, and its rules.

    Args:
        known: names of options.

    Raises:
        DataError: no such file, or no YAML.
        ConfigError: an unknown key, or a rule that is none.
    """
    content = read_yaml(path, "a configuration", "options such as 'ratio: 8'")
    known = list(known)
    options = {str(key): value for key, value in content.items() if key not in Rules.model_fields}
    for key in options:
        if key not in known:
            raise ConfigError(f"{path}: no option is called {key!r}{nearest(key, known)}")
    try:
        rules = {key: content[key] for key in Rules.model_fields if content.get(key) is not None}
        return options, Rules.model_validate(rules)
    except ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {place}: {first['msg'].lower()}") from None
