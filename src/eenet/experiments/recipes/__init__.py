"""Recipes: a model, its data and how it is trained, under one name; and the run folders they leave.

A run folder holds ``recipe.json`` (recipe, seed, data root), ``model.safetensors``, ``history.json`` and the
checkpoint. Somebody else's model with exits attached is a recipe too; its ``recipe.json`` says where the model comes
from, and the model is made again from there whenever the run is opened.
"""

from eenet.experiments.recipes.attached import ATTACHED, Attachment, attached_recipe
from eenet.experiments.recipes.opening import RECIPES, build, open_run
from eenet.experiments.recipes.recipe import RECIPE_FILE, Recipe, Run, train
from eenet.experiments.recipes.sources import Source, attach_source, load_source
from eenet.experiments.recipes.weights import load_weights

__all__ = [
    "ATTACHED",
    "RECIPES",
    "RECIPE_FILE",
    "Attachment",
    "Recipe",
    "Run",
    "Source",
    "attach_source",
    "attached_recipe",
    "build",
    "load_source",
    "load_weights",
    "open_run",
    "train",
]
