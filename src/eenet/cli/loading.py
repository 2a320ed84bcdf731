"""What the commands that run models read first: the run, its images, a policy that fits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eenet.cli import paths
from eenet.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from eenet.core.costs import CostTable
    from eenet.core.table import ExitTable
    from eenet.data.dataset import LabelledDataset
    from eenet.evaluation import CostParts
    from eenet.models.model import MultiExitModel
    from eenet.recipes import Recipe, Run
    from eenet.schedulers import SavedPolicy


def prepare_data(recipe: Recipe, data_root: Path | None, *, download: bool) -> None:
    """Check the folder of a recipe's data before any work starts, after fetching them where that is asked for.

    Raises:
        InputError: It is no folder, is missing, or the data cannot be fetched.
        RunError: The download failed.
    """
    if download and data_root is None:
        raise InputError("--download has nowhere to go: the data set needs a folder. Pass --data-root with one.")
    if download and data_root is not None:
        recipe.download(paths.output_folder(data_root, "--data-root"))
    elif data_root is not None:
        paths.existing_folder(data_root, "--data-root")


def open_run(path: Path, data_root: Path | None = None) -> Run:
    """Return the run in a folder.

    Raises:
        InputError: There is no finished run.
    """
    from eenet import recipes

    if data_root is not None:
        paths.existing_folder(data_root, "--data-root")
    return recipes.open_run(paths.existing_folder(path, "RUN"), data_root=data_root)


def open_policy(path: Path, opened: Run) -> tuple[SavedPolicy, MultiExitModel]:
    """Return a fitted policy and the model it steers: the run's, without the exits it was not fitted for.

    Raises:
        InputError: It is missing, damaged, or was fitted for another number of exits or classes.
    """
    from eenet.inference.record_dense import holds_masks
    from eenet.schedulers import load_policy

    model, classes = opened.model, len(opened.splits.classes)
    saved = load_policy(paths.existing_folder(path, "--policy"))
    exits = tuple(range(saved.policy.num_exits)) if saved.exits is None else saved.exits
    last = model.num_exits - 1
    if exits[-1] != last:
        raise InputError(
            f"--policy {str(path)!r} does not fit: it was fitted for a model of {exits[-1] + 1} exits, this "
            f"one has {model.num_exits}. Fit a policy on a table recorded from this run."
        )
    fitted = saved.info.get("num_classes", classes)
    if fitted != classes and not holds_masks(opened.splits.test):  # of maps, policies see summaries
        raise InputError(
            f"--policy {str(path)!r} does not fit: it was fitted for {fitted} classes, this run's data set has "
            f"{classes}. Fit a policy on a table recorded from this run."
        )
    dropped = [k for k in range(last) if k not in exits]
    return saved, model.without(dropped) if dropped else model


def image_shape(dataset: LabelledDataset) -> tuple[int, int, int]:
    """Return channels, height and width of a data set's images."""
    from eenet.data.dataset import as_images

    channels, height, width = as_images(dataset).images.shape[1:]
    return channels, height, width


def preparation(dataset: LabelledDataset) -> Callable[[Tensor], Tensor]:
    """Return the function that turns raw images into what the model takes."""
    from eenet.data.dataset import as_images

    return as_images(dataset).prepare


def read_table(path: Path, what: str) -> ExitTable:
    """Read an exit table from a file or folder named by the user; operations come in a readable unit.

    Raises:
        InputError: It is missing, damaged or malformed.
    """
    from eenet.core.table import ExitTable

    table = ExitTable.load(paths.existing(path, what))
    return table if table.costs is None else table.with_costs(readable(table.costs))


def read_confusion(path: Path, *, splits: int, grouped: bool) -> Tensor | None:
    """Read the confusion counts of a table recorded from maps; None for other tables.

    Raises:
        InputError: They are damaged, or a comparison of maps was asked for what it cannot tell.
    """
    from eenet.evaluation.segmentation import find_confusion

    confusion = find_confusion(path)
    if confusion is not None and (splits > 1 or grouped):
        option = "--groups" if grouped else f"--splits {splits}"
        raise InputError(
            f"{option} cannot be used here: {str(path)!r} was recorded from maps, which are compared on TEST as it is, "
            "by one number for all images. Leave it out."
        )
    return confusion


def read_groups(path: Path) -> np.ndarray:
    """Read groups of samples named by the user: an array, or text with one group per line.

    Raises:
        InputError: The file is missing, damaged, or a line holds nothing or more than one value.
    """
    import numpy as np

    paths.existing(path, "--groups")
    try:
        if path.suffix.lower() == ".npy":
            loaded: np.ndarray = np.load(path, allow_pickle=False)
            return loaded
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--groups {str(path)!r} cannot be read: {error}. Write it again.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or "," in line:
            what = "several values" if line.strip() else "nothing"
            raise InputError(
                f"--groups {str(path)!r} has {what} in line {number}: one group per line is needed, without a heading, "
                "one line per TEST sample. Write it so."
            )
    return np.array([line.strip() for line in lines], dtype=np.str_)


def pick_costs(
    table: ExitTable, costs: Path | None, batch_size: int | None, engine: str | None, dtype: str | None = None
) -> CostTable:
    """Return the costs of a profile file if one is given, else the table's own; operations in a readable unit.

    Raises:
        InputError: There are none, or they have another number of exits than the table.
    """
    from eenet.inference.measure import load_costs

    if costs is None:
        if any(choice is not None for choice in (batch_size, engine, dtype)):
            raise InputError(
                "--batch-size, --engine and --dtype choose among measured costs: there is no --costs. Pass --costs."
            )
        if table.costs is None:
            raise InputError(
                "costs are missing: the table has no key 'costs' and there is no --costs. "
                "Pass --costs FILE (written by `eenet profile`), or record the table again."
            )
        return table.costs
    chosen = load_costs(paths.existing(costs, "--costs"), batch_size=batch_size, engine=engine, dtype=dtype)
    if chosen.num_exits != table.num_exits:
        raise InputError(
            f"--costs {str(costs)!r} does not fit: it has {chosen.num_exits} exits, the table {table.num_exits}. "
            "Profile the model that the table was recorded from."
        )
    return readable(chosen)


def cost_parts(path: Path | None, costs: CostTable) -> CostParts | None:
    """Return what costs are made of, where a profile says so.

    Args:
        path: The profile; None where the costs are the table's own.
        costs: As `pick_costs` returned them.
    """
    from eenet.core.files import read_json
    from eenet.evaluation import CostParts

    return None if path is None else CostParts.of_profile(read_json(path, "costs"), costs)


def read_exits(text: str, num_exits: int) -> tuple[int, ...]:
    """Read which exits stay, with the last one: numbers separated by commas, or the file of `eenet advise --out`.

    Raises:
        InputError: It names no early exit of the table, or none at all.
    """
    from eenet.core.files import read_json

    words: list[object] = [word.strip() for word in text.split(",")]
    if text.lower().endswith(".json"):
        value = read_json(paths.existing(Path(text), "--exits"), "--exits")
        words = value["kept"] if isinstance(value, dict) and isinstance(value.get("kept"), list) else []
    last = num_exits - 1
    numbers = {int(str(word)) if str(word).isdecimal() else -1 for word in words} | {last}
    if len(numbers) < 2 or min(numbers) < 0 or max(numbers) > last:
        raise InputError(
            f"--exits {text!r} names no early exits of this table: they are 0 to {last - 1}. "
            "Pass for example 1,3, or the file of eenet advise --out."
        )
    return tuple(sorted(numbers))


def readable(costs: CostTable) -> CostTable:
    """Return operation counts in the largest unit in which the full cost is at least 1; other costs as they are."""
    if costs.unit != "FLOPs":
        return costs
    for unit, size in (("GFLOPs", 1e9), ("MFLOPs", 1e6), ("kFLOPs", 1e3)):
        if costs.high >= size:
            return costs.convert(unit)
    return costs
