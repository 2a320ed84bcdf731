"""Recipes: a model, its data and how it is trained, under one name; and the run folders they leave.

A run folder holds ``recipe.json`` (recipe, seed, data root), ``model.safetensors``, ``history.json`` and the
checkpoint. Somebody else's model with exits attached is a recipe too; its ``recipe.json`` says where the model comes
from, and the model is made again from there whenever the run is opened.
"""

from eenet.experiments.recipes.attached import ATTACHED, Attachment, attach_source, attached_recipe
from eenet.experiments.recipes.opening import RECIPES, open_run
from eenet.experiments.recipes.recipe import RECIPE_FILE, Recipe, Run, train
from eenet.experiments.recipes.sources import Source, load_source
from eenet.experiments.recipes.vision import CIFAR_WEIGHTS, cifar10_resnet56_3, cifar10_resnet56_6, digits_tiny

__all__ = [
    "ATTACHED",
    "CIFAR_WEIGHTS",
    "RECIPES",
    "RECIPE_FILE",
    "Attachment",
    "Recipe",
    "Run",
    "Source",
    "attach_source",
    "attached_recipe",
    "cifar10_resnet56_3",
    "cifar10_resnet56_6",
    "digits_tiny",
    "load_source",
    "open_run",
    "train",
]
