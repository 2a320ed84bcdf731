"""Recipes: a model, its data and how it is trained, under one name; and the run folders they leave behind.

A run folder holds ``recipe.json`` (recipe, seed, data root), ``model.safetensors``, ``history.json`` and the
checkpoint. Somebody else's model with exits attached is a recipe too; its ``recipe.json`` says where the model comes
from, and the model is made again from there whenever the run is opened.
"""

from eenet.recipes.attached import ATTACHED, Attachment, attach_source, attached_recipe
from eenet.recipes.known import RECIPES, cifar10_resnet56_3, cifar10_resnet56_6, digits_tiny
from eenet.recipes.opening import open_run
from eenet.recipes.recipe import RECIPE_FILE, Recipe, Run, train
from eenet.recipes.sources import Source, load_source
from eenet.recipes.vision import CIFAR_WEIGHTS

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
