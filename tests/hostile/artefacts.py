"""Everything that eenet saves, small: written into a folder, read back as bytes that tell results apart."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from eenet import CostTable, ExitTable, Policy, StoppingScheduler, load_policy, replay, save_policy
from eenet.evaluation import CostParts
from eenet.policies import Dial
from eenet.running import Bundle, export, load_costs, measure, open_export
from eenet.running.preparation import Preparation
from eenet.tables.files import read_json
from eenet.testing import synthetic_table

try:
    import torch

    from eenet.experiments.recipes import RECIPES, open_run, train
    from eenet.training.checkpoint import restore_checkpoint
except ModuleNotFoundError:  # then only what is LIGHT is written and read
    pass

RECIPE = "digits_tiny"
COSTS = CostTable((1.0, 2.0, 4.0), "ms", 3.5)


def digest(*values: Any) -> str:
    """Return one text for arrays, tensors and whatever has a text of its own."""
    total = hashlib.sha256()
    for value in values:
        if hasattr(value, "detach"):
            value = value.detach().numpy()  # noqa: PLW2901
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype} {value.shape}".encode())
            total.update(np.ascontiguousarray(value).tobytes())
        else:
            total.update(repr(value).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def of_table(path: Path) -> str:
    table = ExitTable.load(path)
    arrays = (table.logits, table.features, table.labels, table.utility, table.cost)
    return digest(*arrays, table.costs, table.split, table.source, table.feature_names)


def of_policy(policy: Policy, dial: Dial | None) -> list[Any]:
    judge = synthetic_table(60, num_exits=3, num_classes=10, seed=9)
    found: list[Any] = []
    for one in (policy, *(() if dial is None else (dial.at("40%"), dial.at("80%")))):
        found += [one.num_exits, one.num_columns, one.source]
        if one.num_exits == judge.num_exits and one.num_columns in (None, judge.num_columns):
            trace = replay(one, judge)
            found += [trace.exit_index, trace.log_probs]
    return found


def of_saved_policy(path: Path) -> str:
    saved = load_policy(path)
    return digest(*of_policy(saved.policy, saved.dial), saved.costs, saved.info, saved.exits, saved.source)


def of_bundle(path: Path) -> str:
    bundle = Bundle.load(path, lambda info: RECIPES[RECIPE].build())
    return digest(
        *bundle.model.state_dict().values(), *of_policy(bundle.policy, bundle.dial), bundle.costs, bundle.info
    )


def of_export(path: Path) -> str:
    opened = open_export(path)
    inputs = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8).numpy()
    state, seen = opened.engine.start({opened.manifest.inputs[0].name: inputs}), []
    for k in range(opened.engine.num_exits):
        state = opened.engine.stage(k, state)
        seen.append(opened.engine.head(k, state)[0])
    manifest = dataclasses.replace(opened.manifest, files={})
    return digest(*seen, *of_policy(opened.policy, opened.dial), opened.costs, manifest)


def of_costs(path: Path) -> str:
    costs = load_costs(path), load_costs(path, batch_size=1)
    return digest(*costs, *(CostParts.of_profile(read_json(path, "costs"), one) for one in costs))


def of_run(path: Path) -> str:
    run = open_run(path)
    return digest(*run.model.state_dict().values(), run.recipe.name, run.recipe.settings, run.data_root)


def of_checkpoint(path: Path) -> str:
    model = RECIPES[RECIPE].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = restore_checkpoint(path, model, optimizer, None)
    states = [value for state in optimizer.state.values() for value in state.values()]
    return digest(losses, *model.state_dict().values(), *states)


LIGHT = ("table.npz", "packed.npz", "features.npz", "table", "policy")
"""What is written and read without PyTorch."""
READERS: dict[str, Callable[[Path], str]] = {
    "table.npz": of_table,
    "packed.npz": of_table,
    "features.npz": of_table,
    "table": of_table,
    "policy": of_saved_policy,
    "bundle": of_bundle,
    "export": of_export,
    "costs.json": of_costs,
    "run": of_run,
    "checkpoint": of_checkpoint,
}


def tables() -> dict[str, ExitTable]:
    """Return the tables that are saved, by name."""
    table = synthetic_table(60, num_exits=3, seed=1)
    table = dataclasses.replace(table, costs=COSTS, source="abc", split="val")
    rng = np.random.default_rng(0)
    cost = rng.uniform(0.5, 2, (40, 3)).cumsum(axis=1)
    features = ExitTable(
        features=rng.normal(size=(40, 3, 2)),
        feature_names=("sure", "unsure"),
        utility=rng.random((40, 3)),
        cost=cost,
        costs=COSTS,
        split="own",
    )
    return {"table.npz": table, "table": table, "features.npz": features}


def fitted(seed: int = 0) -> tuple[Policy, Dial]:
    """Return a policy and its dial for the exits and classes of the recipe."""
    table = dataclasses.replace(synthetic_table(200, num_exits=3, num_classes=10, seed=seed), costs=COSTS)
    dial = StoppingScheduler(seed=seed).sweep(table)
    return dial.at("60%"), dial


def write_light(folder: Path, seed: int = 0) -> None:
    """Write one of each kind that needs no PyTorch into a folder; another seed gives other contents."""
    for name, table in tables().items():
        dataclasses.replace(table, source=f"model {seed}" if name != "features.npz" else "").save(folder / name)
    with np.load(folder / "table.npz") as arrays:
        np.savez_compressed(folder / "packed.npz", allow_pickle=False, **arrays)
    policy, dial = fitted(seed)
    info = {"budget": "60%", "seed": seed}
    save_policy(policy, folder / "policy", costs=COSTS, info=info, exits=[0, 2, 3], dial=dial)


def write_all(folder: Path, seed: int = 0) -> None:
    """Write one of each kind into a folder."""
    write_light(folder, seed)
    policy, dial = fitted(seed)
    recipe = RECIPES[RECIPE].with_seed(seed)
    recipe = dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, epochs=0.1))
    model = train(recipe, folder / "run", progress=False).model
    settings = dataclasses.replace(recipe.settings, epochs=1, checkpoint_seconds=1e-9)
    stop_training(dataclasses.replace(recipe, settings=settings), folder / "checkpoint")
    info = {"recipe": RECIPE, "seed": seed}
    Bundle(model=model, policy=policy, costs=COSTS, info=info, dial=dial).save(folder / "bundle")
    example = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    how = Preparation(mean=(0.5,), std=(0.25,), size=(8, 8))
    classes = [f"digit {k}" for k in range(10)]
    export(model, policy, example, folder / "export", costs=COSTS, classes=classes, preparation=how, dial=dial)
    measure(model, example, batch_sizes=(1,), passes=1, progress=False).save(folder / "costs.json")


def stop_training(recipe: Any, folder: Path) -> None:
    """Train until the first checkpoint is there."""
    fit = importlib.import_module("eenet.training.fit")
    real = fit.write_checkpoint

    def once(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    with mock.patch.object(fit, "write_checkpoint", once):
        try:
            train(recipe, folder, progress=False)
        except KeyboardInterrupt:
            return
    raise AssertionError("no checkpoint was written")


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values in JSON, containers included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(one for key, item in inside for one in leaves(item, (*place, key)))]


def with_value(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Return JSON with another value at a place."""
    if not place:
        return new
    changed = json.loads(json.dumps(value))
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = new
    return changed
