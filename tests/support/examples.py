"""The examples of the pages and notebooks, and the extras that each of these names; needs nothing but Python.

`python tests/support/examples.py` lists environments, one a line: their extras, and the pages that name these.
With pages, it runs their examples.
"""

import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?P<skip><!-- not run: .+? -->\n+)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
EXTRAS = re.compile(r"(?:eenet|\.)\[(?P<names>[a-z,]+)\]")

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def name(page: Path) -> str:
    """The path of a page within the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and code of every example; a block is left out only where `<!-- not run: why -->` stands right above it."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return [(0, "".join(cell["source"])) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return [
        (text.count("\n", 0, match.start("code")), match["code"]) for match in BLOCK.finditer(text) if not match["skip"]
    ]


def extras(page: Path) -> frozenset[str]:
    """The extras that a page tells its readers to install; `all` names none."""
    found = {extra for match in EXTRAS.finditer(page.read_text("utf-8")) for extra in match["names"].split(",")}
    return frozenset(found - {"all"})


def run(page: Path) -> None:
    """Run the examples of a page one after the other, in the working folder."""
    namespace: dict[str, object] = {"__name__": "example"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


def main(pages: list[str]) -> None:
    """List the environments, or run the examples of some pages."""
    if not pages:
        groups = defaultdict(list)
        for page in (*PAGES, *NOTEBOOKS):
            if blocks(page):
                groups[",".join(sorted(extras(page)))].append(name(page))
        for group, members in sorted(groups.items()):
            print(group or "none", *members)
    for page in pages:
        print("--", page, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            run(ROOT / page)


if __name__ == "__main__":
    main(sys.argv[1:])
