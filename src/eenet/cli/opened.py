"""What `eenet run` and `eenet serve` run: a run with a policy, a bundle or an export, and how its inputs are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eenet import environment
from eenet.cli import loading, names
from eenet.cli.interrupt import require
from eenet.cli.output import Output
from eenet.cli.samples import ARRAY_SUFFIXES, Images, Source, TextFiles
from eenet.errors import InputError
from eenet.imports import known
from eenet.tables.files import read_arrays, read_json, read_object

if TYPE_CHECKING:
    from eenet.experiments.recipes import Run
    from eenet.models.model import MultiExitModel
    from eenet.policies import SavedPolicy
    from eenet.policies.scorers import Part
    from eenet.running import AdaptiveModel, Bundle, Tier
    from eenet.running.engines.graphs import TensorSpec
    from eenet.running.stored import Prepares


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that stops early, and what is known about its inputs and answers.

    Attributes:
        adaptive: The model with its policy, or some of its stages.
        split: Returns a split of its own data by name.
        array: Returns the samples of an array file.
        files: Returns how files of images or texts become inputs.
        classes: Names of the classes, where known.
        exits: What the exits are called, where the model has some of the original's only.
        preparation: How images or texts become inputs, where known.
    """

    adaptive: AdaptiveModel | Tier
    split: Callable[[str], Source]
    array: Callable[[Path], Source]
    files: Callable[[], Images | TextFiles]
    classes: Sequence[str] | None
    exits: tuple[int, ...] | None = None
    preparation: Prepares | None = None

    def read(self, words: Sequence[str]) -> list[Source]:
        """Return the inputs that the user named: splits, then array files, then all images or texts."""
        splits = [word for word in words if word.startswith("split:")]
        arrays = [word for word in words if Path(word).suffix.lower() in ARRAY_SUFFIXES and word not in splits]
        files = [word for word in words if word not in (*splits, *arrays)]
        sources = [self.split(word.removeprefix("split:")) for word in splits]
        sources += [self.array(Path(word)) for word in arrays]
        if files:
            sources.append(self.files().files(files))
        return sources


def open_target(
    target: Path,
    policy: Path | None,
    data_root: Path | None,
    threads: int | None,
    output: Output,
    *,
    force: bool,
    parts: Sequence[str] | None,
) -> Opened:
    """Open a run with a policy, a bundle or an export, whichever a folder is."""
    manifest = target / "manifest.json"
    kind = read_object(manifest, "manifest").get("format") if manifest.is_file() else "eenet run"
    if kind == "eenet run":
        if policy is None:
            raise InputError(f"--policy is missing: the run {str(target)!r} has none. Pass what `eenet fit` wrote.")
        opened = loading.open_run(target, data_root)
        return _of_run(opened, *loading.open_policy(policy, opened, output, force=force, parts=parts), threads)
    if policy is not None:
        raise InputError(f"--policy {str(policy)!r} is one too many: {str(target)!r} has its own. Leave it out.")
    if kind == "eenet bundle":
        return _of_bundle(target, data_root, threads, force=force, parts=names.parts(parts))
    return _of_export(target, threads, names.parts(parts))


def _of_run(
    opened: Run, saved: SavedPolicy, model: MultiExitModel, threads: int | None, *, check_source: bool = False
) -> Opened:
    import torch

    from eenet.running import AdaptiveModel

    if (wanted := threads or environment.threads()) is not None:
        torch.set_num_threads(wanted)

    def files() -> Images | TextFiles:
        columns = opened.stored.get("columns")
        return _files(opened.preparation, opened.classes, columns and tuple(columns))

    return Opened(
        adaptive=AdaptiveModel(model, saved.policy, saved.costs, dial=saved.dial, check_source=check_source),
        split=partial(_split, opened),
        array=lambda path: files().array(path),
        files=files,
        classes=opened.classes,
        exits=saved.exits,
        preparation=opened.preparation,
    )


def _of_bundle(
    target: Path, data_root: Path | None, threads: int | None, *, force: bool, parts: Sequence[type[Part]]
) -> Opened:
    require("torch")
    from eenet.experiments.recipes import RECIPES, Run
    from eenet.policies import SavedPolicy
    from eenet.running import Bundle

    info = read_json(target / "info.json", "bundle file")
    if isinstance(info, dict) and "recipe" in info:
        recipe = RECIPES[known("recipe", str(info["recipe"]), RECIPES)].with_seed(info.get("seed", 0))
        bundle = Bundle.load(target, build=lambda _: recipe.build(), parts=parts)
        inputs = target / "inputs.json"
        stored = read_object(inputs, "bundle file") if inputs.is_file() else {}
        opened = Run(recipe=recipe, model=bundle.model, path=target, data_root=data_root, stored=stored)
        saved = SavedPolicy(bundle.policy, bundle.costs, dial=bundle.dial)
        return _of_run(opened, saved, bundle.model, threads, check_source=not force)
    if not isinstance(info, dict) or "structure" not in info:
        raise InputError(
            f"bundle {str(target)!r} cannot be opened here: its info names no recipe that makes the model, and no "
            "structure. Open it in Python, with Bundle.load and what makes it."
        )
    return _of_pretrained(Bundle.from_pretrained(target, parts=parts), threads, check_source=not force)


def _of_pretrained(bundle: Bundle, threads: int | None, *, check_source: bool) -> Opened:
    """Return a bundle that contains all that is known of its model; its data are elsewhere."""
    import torch

    if (wanted := threads or environment.threads()) is not None:
        torch.set_num_threads(wanted)

    def split(name: str) -> Source:
        raise InputError(f"input 'split:{name}' cannot be read: the bundle knows no data set. Pass files or arrays.")

    def files() -> Images | TextFiles:
        return _files(bundle.preparation, bundle.classes)

    return Opened(
        adaptive=bundle.adaptive(check_source=check_source),
        split=split,
        array=lambda path: files().array(path),
        files=files,
        classes=bundle.classes,
        preparation=bundle.preparation,
    )


def _files(
    preparation: Prepares | None, classes: Sequence[str] | None, columns: tuple[str, str] | None = None
) -> Images | TextFiles:
    """Return how files become inputs."""
    from eenet.running.texts import TextPreparation

    if preparation is None:
        raise InputError("files cannot be read: the run does not say how they become inputs. Pass split:test.")
    if isinstance(preparation, TextPreparation):
        return TextFiles(preparation=preparation, classes=classes or (), columns=columns)
    return Images(preparation)


def _of_export(target: Path, threads: int | None, parts: Sequence[type[Part]]) -> Opened:
    from eenet.running import AdaptiveModel, Tier, open_export

    opened = open_export(target, threads, parts=parts)
    preparation = opened.manifest.preparation

    def split(name: str) -> Source:
        raise InputError(f"input 'split:{name}' cannot be read: an export knows no data set. Pass arrays or images.")

    def array(path: Path) -> Source:
        arrays, labels = opened.samples(read_arrays(path, "input"), path)
        count = len(next(iter(arrays.values())))

        def read(rows: slice) -> dict[str, np.ndarray]:
            return next(opened.batches({name: array[rows] for name, array in arrays.items()}, count))

        return Source([f"{path.name}:{row}" for row in range(count)], read, labels)

    def files() -> Images:
        if preparation is None:
            taken = ", ".join(f"{one.name} {one.dtype} {_sizes(one)}" for one in opened.manifest.inputs)
            raise InputError(
                f"files cannot be read: the export does not say how they become inputs. Pass an .npz with {taken}."
            )
        return Images(preparation)

    return Opened(
        adaptive=Tier(opened.engine, opened.policy, opened.costs)
        if opened.engine.held
        else AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial),
        split=split,
        array=array,
        files=files,
        classes=opened.manifest.classes,
        preparation=preparation,
    )


def _sizes(one: TensorSpec) -> str:
    """Return the shape of an input in words, a free size as its limits."""
    limits = {size.axis: f"{size.low} to {size.high or 'any'}" for size in one.free}
    sizes = (limits.get(axis, str(size)) for axis, size in enumerate(one.shape, 1))
    return f"[{', '.join(('sample', *sizes))}]"


def _split(opened: Run, name: str) -> Source:
    data = opened.splits.get(name)
    try:
        labels = data.labels.numpy()
    except InputError:  # masks: a class per pixel, none of the sample
        labels = None
    return Source([f"{name}:{row}" for row in range(len(data))], data.inputs, labels)
