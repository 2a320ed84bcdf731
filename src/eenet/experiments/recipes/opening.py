"""All recipes that come with eenet, under the names users call them by; and opening the folder of a run again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet.errors import InputError, MissingExtraError
from eenet.experiments.recipes import text, vision
from eenet.experiments.recipes.attached import ATTACHED, Attachment, attached_recipe
from eenet.experiments.recipes.recipe import RECIPE_FILE, Recipe, Run
from eenet.experiments.zoo.parts import check_weights
from eenet.imports import known
from eenet.models.model import MultiExitModel
from eenet.models.weights import load_tensors
from eenet.tables.files import read_object
from eenet.training.fit import FINAL_WEIGHTS

RECIPES = vision.RECIPES | text.RECIPES


def open_run(path: Path, *, data_root: Path | None = None) -> Run:
    """Return the run in a folder, its model loaded and in evaluation mode.

    Args:
        path: the run folder.
        data_root: where the data is now, if it was moved after training.

    Raises:
        InputError: no finished run is there, its recipe is not known, or the model exits were attached to cannot be
            made again.
    """
    path = Path(path)
    described = read_object(path / RECIPE_FILE, "run")
    recipe = _recipe(path, described)
    if not (path / FINAL_WEIGHTS).is_file():
        raise InputError(f"run {path} is not finished: {FINAL_WEIGHTS} is missing. Run the training again, it resumes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they were said before the training
            model = recipe.build()
    except InputError as error:
        if recipe.name != ATTACHED or isinstance(error, MissingExtraError):
            raise
        raise InputError(f"run {path} cannot be opened, its model cannot be made again: {error}") from error
    state = load_tensors(path / FINAL_WEIGHTS, "weights")
    check_weights(model.state_dict(), state, path / FINAL_WEIGHTS)
    model.load_state_dict(state)
    root = data_root if data_root is not None else described.get("data_root")
    place = None if root is None else Path(str(root))
    return Run(recipe=recipe, model=model.eval(), path=path, data_root=place, stored=described)


def build(info: Mapping[str, Any]) -> MultiExitModel:
    """Return the model of a recipe, before training, from the ``info`` of a bundle: its ``recipe`` and ``seed``.

    Raises:
        InputError: It names no recipe that comes with eenet.
    """
    name = info.get("recipe") if isinstance(info, Mapping) else None
    return RECIPES[known("recipe", str(name), RECIPES)].with_seed(info.get("seed", 0)).build()


def _recipe(path: Path, described: dict[str, Any]) -> Recipe:
    """Return the recipe that a run folder describes."""
    name = described.get("recipe")
    if name != ATTACHED and not (isinstance(name, str) and name in RECIPES):
        raise InputError(
            f"run {path} cannot be opened: its recipe {name!r} is not known. The recipes are {', '.join(RECIPES)}."
        )
    try:
        if name == ATTACHED:
            return attached_recipe(Attachment.from_dict(described), opened=path)
        return RECIPES[name].with_seed(described.get("seed", 0))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"run {path} cannot be opened: {RECIPE_FILE} is damaged ({type(error).__name__}: {error}). "
            "Train again, into another folder."
        ) from error
