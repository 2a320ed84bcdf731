"""`eenet export`: a folder that runs without torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from eenet.cli import loading, names, options
from eenet.cli.interrupt import require
from eenet.cli.output import Output, Result
from eenet.errors import InputError
from eenet.imports import known
from eenet.report.sections import Table

_SAMPLES = 16  # on which the exported stages are compared with the model


def export(
    run: options.RunArgument,
    *,
    policy: Annotated[Path, options.POLICY_OPTION],
    engine: Annotated[str, options.word("E", "What shall run it: onnxruntime or openvino.")],
    out: Annotated[Path, options.folder_out("Write the export here.")],
    tier: Annotated[int | None, options.count("Stages and heads up to this exit only, for a weak device.", 0)] = None,
    after: Annotated[
        int | None, options.count("Stages and heads after this exit only, for the next tier.", 0, names=["--from"])
    ] = None,
    force: options.ForceOption = False,
    parts: options.PartsOption = None,
    data_root: options.DataRootOption = None,
    output: Output,
) -> Result:
    """Write a model and its policy as a folder that runs without torch.

    Where it runs, `pip install "eenet[onnx]"` (or `"eenet[openvino]"`) is all that is needed: `AdaptiveModel(folder)`
    opens it in Python, `eenet run` on the command line. There is one graph per stage; the stages are checked against
    the model on test samples.

    With --tier and --from the model is divided among devices: each folder has the weights of its own stages only, and
    `eenet run` sends on the samples that stay. Export with the same policy for all tiers.

    Examples:

        eenet export run --policy policy --engine onnxruntime --tier 0 --out device

        eenet export run --policy policy --engine onnxruntime --from 0 --out server

        eenet export run --policy policy --engine onnxruntime --out exported

        eenet run exported inputs.npz
    """
    from eenet.running.engines.graphs import GRAPH_ENGINES

    known("engine", engine, GRAPH_ENGINES)
    require("torch", "onnx", "onnxscript", engine)
    from eenet import running
    from eenet.running.preparation import Preparation

    opened = loading.open_run(run, data_root)
    saved, model = loading.open_policy(policy, opened, output, force=force, parts=parts)
    stages = _stages(tier, after, model.num_exits)
    examples, gone = opened.example(_SAMPLES)
    if gone:
        output.note(f"Note: {gone}")
    output.note(f"Exporting {model.num_exits} stages for {engine}.")
    with tempfile.TemporaryDirectory() as scratch:
        exported = running.export(
            model,
            saved.policy,
            examples,
            out if stages is None else Path(scratch) / "whole",
            engine="openvino" if engine == "openvino" else "onnxruntime",
            costs=saved.costs,
            dial=saved.dial,
            classes=opened.classes,
            preparation=opened.preparation if isinstance(opened.preparation, Preparation) else None,
            check_source=False,  # done by now
        )
        manifest, error = exported.manifest, exported.error
        if stages is not None:
            own = names.parts(parts)
            part = running.split_export(exported.path, out, first=stages[0], last=stages[-1], parts=own)
            manifest = part.to_dict()
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    value = {key: manifest[key] for key in ("engine", "num_exits", "num_classes", "inputs", "stages")}
    value |= {} if stages is None else {"first": stages[0], "last": stages[-1]}
    files = [stage["file"] for stage in manifest["stages"]]
    rows = [(file, str((out / file).stat().st_size)) for file in files]
    written = f"wrote {out}: {size} bytes, logits within {error:.1g} of the model's"
    table = Table(("file", "bytes"), rows, "Stages")
    return {"out": str(out), **value, "bytes": size, "error": error}, [table, written]


def _stages(tier: int | None, after: int | None, exits: int) -> range | None:
    """Return the stages that --tier and --from ask for; None: all."""
    if tier is None and after is None:
        return None
    first, last = 0 if after is None else after + 1, exits - 1 if tier is None else tier
    if first >= exits or not first <= last < exits or last - first + 1 == exits:
        given = " and ".join(f"{name} {k}" for name, k in (("--tier", tier), ("--from", after)) if k is not None)
        raise InputError(
            f"{given} cannot be exported as a part of {exits} exits: --tier ends at an exit, --from begins "
            f"after one of 0 to {exits - 2}. Pass for example --tier 0, or --from 0."
        )
    return range(first, last + 1)
