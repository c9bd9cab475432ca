"""Compress trained ONNX models after training."""

from importlib.metadata import version

import lazy_loader

# The command line starts, and stops, without importing it all: names come from __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("onnxcompress")
