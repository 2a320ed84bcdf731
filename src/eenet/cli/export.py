"""`eenet export`: a folder that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from eenet.cli import loading, names, options
from eenet.cli.interrupt import require
from eenet.cli.output import Output, Result
from eenet.report.sections import Table

_SAMPLES = 16  # on which the exported stages are compared with the model


def export(
    run: options.RunArgument,
    *,
    policy: Annotated[Path, options.POLICY_OPTION],
    engine: Annotated[str, options.word("E", "What shall run it: onnxruntime or openvino.")],
    out: Annotated[Path, options.folder_out("Write the export here.")],
    force: options.ForceOption = False,
    parts: options.PartsOption = None,
    data_root: options.DataRootOption = None,
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
    from eenet.running.preparation import Preparation

    opened = loading.open_run(run, data_root)
    saved, model = loading.open_policy(policy, opened, output, force=force, parts=parts)
    examples, gone = opened.example(_SAMPLES)
    if gone:
        output.note(f"Note: {gone}")
    output.note(f"Exporting {model.num_exits} stages for {engine}.")
    exported = running.export(
        model,
        saved.policy,
        examples,
        out,
        engine="openvino" if engine == "openvino" else "onnxruntime",
        costs=saved.costs,
        dial=saved.dial,
        classes=opened.classes,
        preparation=opened.preparation if isinstance(opened.preparation, Preparation) else None,
        check_source=False,  # done by now
    )
    manifest, size, error = exported.manifest, exported.size, exported.error
    value = {key: manifest[key] for key in ("engine", "num_exits", "num_classes", "inputs", "stages")}
    files = [stage["file"] for stage in manifest["stages"]]
    rows = [(file, str((out / file).stat().st_size)) for file in files]
    written = f"wrote {out}: {size} bytes, logits within {error:.1g} of the model's"
    stages = Table(("file", "bytes"), rows, "Stages")
    return {"out": str(out), **value, "bytes": size, "error": error}, [stages, written]
