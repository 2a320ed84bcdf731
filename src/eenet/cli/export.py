"""`eenet export`: a folder that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from eenet.cli import loading, names, paths
from eenet.cli.options import DataRootOption, DebugFlag, JsonFlag, PolicyFolderOption, QuietFlag, RunArgument
from eenet.cli.output import Output, text_table

if TYPE_CHECKING:
    from eenet.data.dataset import LabelledDataset
    from eenet.inference.export import Exported, Preparation

_SAMPLES = 16  # on which the exported stages are held against the model


def export(
    run: RunArgument,
    *,
    policy: PolicyFolderOption,
    engine: Annotated[str, typer.Option("--engine", metavar="E", help="What shall run it: onnx or openvino.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Write the export here.")],
    data_root: DataRootOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write a model and its policy as a folder that runs without torch, one graph per stage.

    Where it runs, `pip install "eenet-runtime[onnxruntime]"` (or `[openvino]`) is all that is needed:
    `eenet_runtime.load` opens the folder, `python -m eenet_runtime` runs it on arrays. The stages are checked against
    the model on test samples.

    Examples:

        eenet export run --policy policy --engine onnx --out exported

        python -m eenet_runtime exported inputs.npz
    """
    output = Output(as_json=as_json, quiet=quiet)
    from eenet.inference.export import EXPORT_ENGINES, require_engine
    from eenet.inference.export import export as write

    chosen = next((known for known in EXPORT_ENGINES if known == engine), None)
    if chosen is None:
        raise names.unknown("engine", engine, EXPORT_ENGINES)
    require_engine(chosen)
    paths.output_folder(out)  # `export` itself replaces exports only
    opened = loading.open_run(run, data_root)
    saved, model = loading.open_policy(policy, opened)
    samples = opened.splits.test
    output.note(f"Exporting {model.num_exits} stages for {chosen}.")
    exported = write(
        model,
        saved.policy,
        samples.inputs(slice(0, _SAMPLES)),
        out,
        engine=chosen,
        costs=saved.costs,
        classes=opened.splits.classes,
        preparation=_preparation(samples),
    )
    output.result(_value(exported), *_shown(exported))


def _preparation(dataset: LabelledDataset) -> Preparation:
    from eenet.data.dataset import as_images
    from eenet.inference.export import Preparation

    samples = as_images(dataset)
    height, width = samples.size or loading.image_shape(samples)[1:]
    return Preparation(mean=samples.mean, std=samples.std, size=(height, width))


def _value(exported: Exported) -> dict[str, Any]:
    told = ("engine", "num_exits", "num_classes", "inputs", "stages")
    value = {name: exported.manifest[name] for name in told}
    return {"out": str(exported.path), **value, "bytes": exported.size, "error": exported.error}


def _shown(exported: Exported) -> list[RenderableType]:
    rows = [
        (stage["file"], len(stage["inputs"]), len(stage["outputs"]), (exported.path / stage["file"]).stat().st_size)
        for stage in exported.manifest["stages"]
    ]
    return [
        text_table("Stages", ("file", "inputs", "outputs", "bytes"), rows),
        f"wrote {exported.path}: {exported.size} bytes, logits within {exported.error:.1g} of the model's",
    ]
