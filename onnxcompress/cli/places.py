"""Where results may be written: nothing that a command reads is replaced by a slip."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from onnxcompress.core.scratch import check_place

CONFIG = "onnxcompress.config"  # The context knows the configuration file by this name.


def check_page(page: Path | None, read: Collection[Path]) -> None:
    """Find out before the work whether a report page could be made and written.

    Args:
        read: the files that it must not replace.
    """
    if page is not None:
        from onnxcompress.report.page import check

        check()
        check_place(page, (), force=False)
        same = page.exists() and any(page.samefile(path) for path in read if path.exists())
        if same or page.resolve() in {path.resolve() for path in read}:
            raise click.UsageError(f"--report {page} would replace a model or its samples")


def files_of_data(options: Mapping[str, Any], targets: Collection[Path]) -> Iterator[Path]:
    """The files of samples, of how they are read, and of the configuration.

    Args:
        targets: where results are to go: folders of samples are searched only if one is there.
    """
    names = [options.get(name) for name in ("calib", "evaluation", "train", "preprocess")]
    config = click.get_current_context().meta.get(CONFIG)
    for path in (Path(name) for name in (*names, config) if name):
        if path.is_file():
            yield path
        elif path.is_dir() and any(target.exists() for target in targets):
            yield from (file for file in path.rglob("*") if file.is_file())
