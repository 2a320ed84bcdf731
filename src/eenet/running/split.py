"""Writing some stages of an export as a folder of their own, for one tier of devices; without torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from eenet.errors import InputError
from eenet.policies.scorers import Part
from eenet.running.engines.graphs import GraphEngine
from eenet.running.exports import POLICY, open_export
from eenet.running.manifest import Manifest
from eenet.tables.atomic import atomic_path
from eenet.tables.checks import number
from eenet.tables.files import MANIFEST, check_free, checksums, write_json


def split_export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    first: int | None = None,
    last: int | None = None,
    parts: Sequence[type[Part]] = (),
) -> Manifest:
    """Write the stages ``first`` to ``last`` of an export as a folder that `Tier` runs, atomically.

    It has the graphs of these stages and their heads, the whole policy, and what the next tier takes; no weights of
    any other stage. Files are copied as they are, so every tier computes as the whole export does.

    Args:
        path: The folder of an export, or one that was split before.
        out: The new folder; an older export is replaced.
        first: The first stage; default: the first that is there.
        last: The last stage; default: the last that is there.
        parts: Classes of yours that its policy consists of.

    Returns:
        The manifest of what was written.

    Raises:
        BundleError: The export is missing, incomplete or was changed.
        InputError: It has no such stages, these are all of them, or ``out`` is a folder of something else.
    """
    source, opened = Path(path), open_export(path, parts=parts)
    manifest, engine = opened.manifest, opened.engine
    held = manifest.held
    first = int(number(held[0] if first is None else first, "first", held[0], held[-1], whole=True))
    last = int(number(held[-1] if last is None else last, "last", first, held[-1], whole=True))
    if (first, last) == (held[0], held[-1]):
        raise InputError(
            f"stages {first} to {last} are all that {source} has: there is nothing to split. Leave some out."
        )
    assert isinstance(engine, GraphEngine)
    stages = manifest.stages[first - held[0] : last - held[0] + 1]
    stems = {Path(stage).stem for stage in stages}
    with atomic_path(out, partial(check_free, what="export")) as draft:
        for name in manifest.files:
            if Path(name).parts[0] == POLICY or Path(name).stem in stems:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, draft / name)
        part = replace(manifest, first=first, stages=stages, sends=engine.sends[last - held[0]], files=checksums(draft))
        write_json(draft / MANIFEST, part.to_dict(), sealed=True)
        open_export(draft, parts=parts)
    return part
