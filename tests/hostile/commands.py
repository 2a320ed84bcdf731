"""Every command that writes, killed at random times: old or new, whole, and nothing left after the next run.

The commands run as processes of their own, forked from one that has imported what they need.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tests.hostile.artefacts import RECIPE, digest, of_costs, of_export, of_saved_policy, of_table

from eenet.cli.entry import main as entry
from eenet.experiments import recipes
from eenet.experiments.recipes import open_run
from eenet.tables.atomic import restore
from eenet.tables.files import read_json

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Command:
    """A command in two versions, how its output is read, and whether the same words give the same output."""

    words: tuple[str, ...]
    versions: tuple[tuple[str, ...], ...]
    out: str
    read: Callable[[Path], str]
    repeatable: bool = True


def of_comparison(path: Path) -> str:
    """Read a comparison, whose files must be of one run."""
    restore(path / "comparison")
    value = read_json(path / "comparison.json", "comparison")
    asked = value["rows"][0]["budget_input"]
    page = (path / "report.html").read_text()
    assert page.endswith("</html>\n") and f"-b {asked}" in page
    return str(asked)


COMMANDS = {
    "record": Command(("record", "run"), (("--split", "val"), ("--split", "test")), "table.npz", of_table),
    "record folder": Command(("record", "run"), (("--split", "val"), ("--split", "test")), "table", of_table),
    "fit": Command(("fit", "val.npz"), (("-b", "50%", "-p", "joint"), ("-b", "70%", "-p", "joint")), "policy",
                   of_saved_policy),
    "export": Command(("export", "run", "--engine", "onnxruntime"), (("-p", "fitted"), ("-p", "other")), "exported",
                      of_export),
    "report": Command(("report",), (("compared",), ("costs.json",)), "page.html", lambda path: path.read_text()),
    "compare": Command(("compare", "val.npz", "test.npz", "-p", "max_prob"), (("-b", "50%"), ("-b", "70%")), "again",
                       of_comparison),
    "profile": Command(("profile", "run", "--batch-size", "1", "--passes", "1"), ((), ()), "profile.json", of_costs,
                       repeatable=False),
    "run": Command(("run", "run", "-p", "fitted"), (("split:val",), ("split:test",)), "rows.csv",
                   lambda path: path.read_text()),
}  # fmt: skip


def forked(work: Callable[[], int | None], said: Path = Path(os.devnull)) -> int:
    """Run work in a process of its own, whose words go into a file; return its id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with said.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = work() or 0
    except KeyboardInterrupt:  # before the command began
        code = 130
    except BaseException:  # noqa: BLE001 - whatever it is
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(words: tuple[str, ...], folder: Path, said: Path = Path(os.devnull)) -> int:
    """Start a command in a folder; return the id of its process."""

    def work() -> int:
        os.chdir(folder)
        sys.argv = ["eenet", *words, "-q"]
        return entry()

    return forked(work, said)


def done(words: tuple[str, ...], folder: Path) -> float:
    """Run a command to its end; return how long it took."""
    start, said = time.monotonic(), folder / "said"
    code = ended(command(words, folder, said))
    assert code == 0, f"{words} ended with {code}: {said.read_text()}"
    said.unlink()
    return time.monotonic() - start


def seen(read: Callable[[Path], str], path: Path) -> str:
    """Return what reads as this, in a process of its own: this one starts no threads."""
    answer = path.parent / "answer"

    def work() -> None:
        try:
            answer.write_text(digest(read(path)))
        except Exception as error:  # noqa: BLE001 - whatever it is
            answer.write_text(f"{type(error).__name__} {error}")

    ended(forked(work))
    text = answer.read_text()
    answer.unlink()
    return text


def prepare(folder: Path) -> None:
    """Make what the commands need."""
    done(("train", RECIPE, "--out", "run"), folder)
    for split in ("val", "test"):
        done(("record", "run", "--split", split, "--out", f"{split}.npz"), folder)
    for name, budget in (("fitted", "60%"), ("other", "80%")):
        done(("fit", "val.npz", "-b", budget, "-p", "joint", "--out", name), folder)
    done(("profile", "run", "--batch-size", "1", "--passes", "1", "--out", "costs.json"), folder)
    done(("compare", "val.npz", "test.npz", "-b", "60%", "-p", "max_prob", "--out", "compared"), folder)


def stopped(child: int, after: float, number: int) -> int:
    """Send a signal to a process after a time, and return how it ended."""
    time.sleep(after)
    os.kill(child, number)  # it waits to be asked for its end: its id is not another's yet
    return ended(child)


def wrong_end(code: int, number: int, said: Path) -> str:
    """Return what is wrong with how a command ended."""
    text = said.read_text() if said.exists() else ""
    said.unlink(missing_ok=True)
    allowed = {signal.SIGKILL: (0, -9), signal.SIGINT: (0, 130), signal.SIGTERM: (0, 130, -15)}[signal.Signals(number)]
    return "" if code in allowed and "Traceback" not in text else f"ended with {code}, said {text!r}"


def killed(name: str, folder: Path, kills: int) -> list[str]:
    """Kill a command so many times; return what went wrong."""
    one, failures, rng = COMMANDS[name], [], np.random.default_rng(len(name))
    path, before = folder / one.out, sorted(os.listdir(folder))
    words = [(*one.words, *version, "--out", one.out) for version in one.versions]
    known, times = [], []
    for version in reversed(words):
        times.append(done(version, folder))
        known.append(seen(one.read, path))
    for i in range(kills):
        number, after = SIGNALS[i % 3], (i + rng.random()) / kills * min(times)
        code = stopped(command(words[1 - i % 2], folder, folder / "said"), after, number)
        if wrong := wrong_end(code, number, folder / "said"):
            failures.append(f"{name} {number.name} after {after:.2f} s {wrong}")
        found = seen(one.read, path)
        if found not in known and (one.repeatable or len(found) != 64):
            failures.append(f"{name} {number.name} after {after:.2f} s left {found}")
    done(words[0], folder)
    if found := [entry for entry in sorted(os.listdir(folder)) if entry not in (*before, one.out)]:
        failures.append(f"{name} left {found}")
    if found := [str(entry) for entry in path.rglob("*") if "eenet-" in entry.name]:
        failures.append(f"{name} left {found}")
    return failures


def killed_training(folder: Path, kills: int) -> list[str]:
    """Kill a training again and again, let it go on each time, and compare its end with one that was left alone."""

    def of_run(path: Path) -> str:
        return digest(*open_run(path).model.state_dict().values())

    failures, rng = [], np.random.default_rng(0)
    whole, words = seen(of_run, folder / "run"), ("train", RECIPE, "--out", "trained")
    for i in range(kills):
        number, after = SIGNALS[i % 3], rng.uniform(0.05, 0.7)
        code = stopped(command(words, folder, folder / "said"), after, number)
        if wrong := wrong_end(code, number, folder / "said"):
            failures.append(f"train {number.name} after {after:.2f} s {wrong}")
    done(words, folder)
    if (found := seen(of_run, folder / "trained")) != whole:
        failures.append(f"train ended with other weights: {found}")
    expected = sorted(os.listdir(folder / "run"))
    if (left := sorted(os.listdir(folder / "trained"))) != expected:
        failures.append(f"train left {left}, not {expected}")
    return failures


def main() -> None:
    """Kill commands, in a process of its own: arguments are a folder, how many kills each, and names, if not all."""
    folder, kills, *names = sys.argv[1:]
    torch.set_num_threads(1)
    recipe = recipes.RECIPES[RECIPE]
    recipes.RECIPES[RECIPE] = dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, epochs=3))
    place = Path(folder, "commands")
    place.mkdir()
    prepare(place)
    failures = []
    for name in names or (*COMMANDS, "train"):
        if name == "train":
            failures += killed_training(place, int(kills))
        else:
            failures += killed(name, place, int(kills) // (2 if name.startswith("record") else 1))
            out = place / COMMANDS[name].out
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    print(json.dumps({"failures": failures}))


if __name__ == "__main__":
    main()
