"""`eenet export`: a folder that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet.cli import loading, names
from eenet.cli.interrupt import require
from eenet.cli.options import POLICY_OPTION, DataRootOption, RunArgument, folder_out
from eenet.cli.output import Columns, Output, Result, text_table

if TYPE_CHECKING:
    from eenet.running.manifest import Preparation
    from eenet.training.dataset import LabelledDataset

_SAMPLES = 16  # on which the exported stages are compared with the model


def export(
    run: RunArgument,
    *,
    policy: Annotated[Path, POLICY_OPTION],
    engine: Annotated[str, typer.Option("--engine", metavar="E", help="What shall run it: onnxruntime or openvino.")],
    out: Annotated[Path, folder_out("Write the export here.")],
    data_root: DataRootOption = None,
    output: Output,
) -> Result:
    """Write a model and its policy as a folder that runs without torch.

    Where it runs, `pip install "eenet[onnx]"` (or `"eenet[openvino]"`) is all that is needed: `AdaptiveModel(folder)`
    opens it in Python, `eenet run` on the command line. There is one graph per stage; the stages are checked against
    the model on test samples.

    Examples:

        eenet export run --policy policy --engine onnxruntime --out exported

        eenet run exported inputs.npz
    """
    from eenet.running.engines.graphs import GRAPH_ENGINES

    names.known("engine", engine, GRAPH_ENGINES)
    require("torch", "onnx", "onnxscript", engine)
    from eenet import running

    opened = loading.open_run(run, data_root)
    saved, model = loading.open_policy(policy, opened)
    samples = opened.splits.test
    output.note(f"Exporting {model.num_exits} stages for {engine}.")
    exported = running.export(
        model,
        saved.policy,
        samples.inputs(slice(0, _SAMPLES)),
        out,
        engine="openvino" if engine == "openvino" else "onnxruntime",
        costs=saved.costs,
        dial=saved.dial,
        classes=opened.splits.classes,
        preparation=_preparation(samples),
    )
    manifest, size, error = exported.manifest, exported.size, exported.error
    value = {key: manifest[key] for key in ("engine", "num_exits", "num_classes", "inputs", "stages")}
    columns: Columns = {
        "file": "file",
        "inputs": lambda stage: len(stage["inputs"]),
        "outputs": lambda stage: len(stage["outputs"]),
        "bytes": lambda stage: (out / stage["file"]).stat().st_size,
    }
    written = f"wrote {out}: {size} bytes, logits within {error:.1g} of the model's"
    stages = text_table("Stages", manifest["stages"], columns)
    return {"out": str(out), **value, "bytes": size, "error": error}, [stages, written]


def _preparation(dataset: LabelledDataset) -> Preparation:
    from eenet.experiments.data.dataset import as_images
    from eenet.running.manifest import Preparation

    samples = as_images(dataset)
    height, width = samples.size or samples.images.shape[2:]
    return Preparation(mean=samples.mean, std=samples.std, size=(height, width))
