"""Compress trained ONNX models after training."""


def __getattr__(name):
    """A public name when somebody asks for it: the command line starts, and stops, without all.

    The names, and their types, are those of ``__init__.pyi``.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("onnxcompress")
    get, _, names = _public()
    return names if name == "__all__" else get(name)


def __dir__():
    return _public()[1]()


def _public():
    """What gets a public name, what lists them all, and what ``import *`` takes."""
    import lazy_loader

    return lazy_loader.attach_stub(__name__, __file__)
