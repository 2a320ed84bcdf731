"""`--static`: models without early exits that could be used instead, in words, as JSON, or as tables of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eenet.cli.loading import read_cost, read_utility
from eenet.cli.options import existing, word
from eenet.errors import InputError
from eenet.tables.costs import CostTable
from eenet.tables.files import read_json
from eenet.tables.outcomes import SUFFIXES, load_table
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.evaluation import StaticModel

StaticOption = Annotated[
    list[str] | None,
    word(
        "[NAME:]COST:UTILITY|FILE|STAGE",
        "Model without exits: 2.1ms:0.93, tiny:60%:93%, a .json of these, its own table on the same samples, of which "
        "the last exit counts, or a stage of outcomes run by itself. Repeatable.",
    ),
]
_FORM = "Write cost:utility or name:cost:utility such as tiny:2.1ms:0.93, or name a .json with these, or a table."


def read_statics(texts: Sequence[str] | None, table: ExitTable) -> list[StaticModel]:
    """Read the models of every --static, at costs in the unit of a table's.

    The name of an exit stands for it alone, where exits are models by themselves (`ExitTable.separate`).

    Raises:
        InputError: One is no model, or its cost has another unit.
    """
    costs, names = table.require_costs(), table.exit_names if table.separate else ()
    for text in texts or []:
        if names and ":" not in text and text not in names and not Path(text).suffix and not Path(text).exists():
            raise InputError(f"--static {text!r} is no stage: there are {', '.join(names)}. {_FORM}")
    return [
        model
        for text in texts or []
        for model in ([_stage(table, names.index(text))] if text in names else _models(text, costs))
    ]


def _models(text: str, costs: CostTable) -> list[StaticModel]:
    """Read the models of one --static."""
    path = Path(text)
    if path.suffix.lower() in (".npz", *SUFFIXES) or path.is_dir():
        return [_of_table(existing(path, "--static"), costs)]
    if path.suffix.lower() != ".json":
        cost, _, utility = text.rpartition(":")
        name, _, cost = cost.rpartition(":")
        return [_model(text, {"name": name or text, "cost": cost, "utility": utility}, costs)]
    value = read_json(existing(path, "--static"), "--static")
    models = value if isinstance(value, list) else [value]
    many = len(models) > 1
    return [_model(text, one, costs, f"{path.stem} {i}" if many else path.stem, i) for i, one in enumerate(models)]


def _model(text: str, model: Any, costs: CostTable, name: str = "", number: int = 0) -> StaticModel:  # noqa: ANN401
    from eenet.evaluation import StaticModel

    fact = f"model {number} lacks 'cost' or 'utility'"
    try:
        cost, utility = f"{model['cost']}{model.get('unit', '')}", str(model["utility"])
        fact = f"{utility!r} is no utility"
        quality = read_utility(utility)
        fact = f"{cost!r} is no number, alone or with a unit like {costs.unit}"
        spent = read_cost(cost, costs)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise InputError(f"--static {text!r} is no model: {fact}. {_FORM}") from error
    return StaticModel(name=str(model.get("name", name)), cost=spent, utility=quality)


def _stage(table: ExitTable, k: int) -> StaticModel:
    from eenet.evaluation import StaticModel

    known = table.require_utility("--static")[:, k]
    cost = table.require_costs().stage_costs[k]
    return StaticModel(name=f"{table.exit_names[k]} by itself", cost=cost, utility=float(known.mean()), utilities=known)


def _of_table(path: Path, costs: CostTable) -> StaticModel:
    """Return the last exit of a table as a model whose utility is known for every sample."""
    from eenet.evaluation import StaticModel

    table = load_table(path)
    utilities = table.require_utility("--static")[:, -1]
    cost = table.require_costs().convert(costs.unit).high
    return StaticModel(name=path.stem, cost=cost, utility=float(utilities.mean()), utilities=utilities)
