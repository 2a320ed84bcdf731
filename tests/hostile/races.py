"""Processes that write and read the same thing at the same time: every reader sees one version, no writer fails."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.hostile.writers import NEW, OLD, Writer, plain_writers, torch_writers

from eenet.tables import atomic


def loop(work: Callable[[], str], until: float, answer: Path) -> int:
    """Do work again and again in a process of its own, which writes down what came of it; return its id."""
    child = os.fork()
    if child:
        return child
    counts: Counter[str] = Counter()
    while time.monotonic() < until:
        try:
            counts[work()] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is
            counts[f"{type(error).__name__} {error}"[:300]] += 1
    answer.write_text(json.dumps(counts))
    os._exit(0)


def raced(name: str, writer: Writer, folder: Path, seconds: float) -> tuple[list[str], Counter[str]]:
    """Let two processes write and two read; return what is wrong, and how often each did its work."""
    path, answers = folder / name, folder.with_name(f"{folder.name} answers")
    folder.mkdir(parents=True)
    answers.mkdir()
    known = {}
    for version in (OLD, NEW):
        writer.write(path, version)
        known[str(writer.read(path))] = "read"

    def written(version: int) -> Callable[[], str]:
        return lambda: (writer.write(path, version), "written")[1]

    def read() -> str:
        return known.get(str(writer.read(path)), "neither old nor new")

    until = time.monotonic() + seconds
    works = (written(OLD), written(NEW), read, read)
    children = [loop(work, until, answers / str(i)) for i, work in enumerate(works)]
    for child in children:
        os.waitpid(child, 0)
    counts = sum((Counter(json.loads((answers / str(i)).read_text())) for i in range(len(works))), Counter())
    failures = [f"{name}: {what} ({count} times)" for what, count in counts.items() if what not in ("read", "written")]
    failures += [f"{name}: left {one.name}" for one in folder.iterdir() if one != path]
    return failures, counts


def main() -> None:
    """Race, in a process of its own: arguments are a folder, seconds for each, ``plain`` or ``torch``, and names."""
    folder, seconds, kind, *names = sys.argv[1:]
    writers = plain_writers() if kind == "plain" else torch_writers()
    failures, counts = [], {}
    for way in ("one step", "two renames"):
        if way == "two renames":
            atomic._renameat2 = lambda: None  # type: ignore[assignment]
        for name in names:
            wrong, done = raced(name, writers[name], Path(folder, way, name), float(seconds))
            failures += [f"{way}, {one}" for one in wrong]
            counts[f"{name}, {way}"] = done
    print(json.dumps({"failures": failures, "counts": counts}))


if __name__ == "__main__":
    main()
