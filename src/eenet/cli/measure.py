"""`eenet profile` and `eenet bench`: what exits cost, and what stopping early really saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet.cli import loading, names, paths
from eenet.cli.options import (
    BatchSizesOption,
    DataRootOption,
    DebugFlag,
    DtypesOption,
    EnginesOption,
    JsonFlag,
    PassesOption,
    PolicyFolderOption,
    QuietFlag,
    RunArgument,
    SeedOption,
    whole_numbers,
)
from eenet.cli.output import Output
from eenet.cli.show import bench_table, profile_tables
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.data.dataset import LabelledDataset
    from eenet.inference.engines import Engine
    from eenet.models.model import MultiExitModel
    from eenet.recipes import Run


def profile(
    run: RunArgument,
    *,
    batch_size: BatchSizesOption = "1,32,128",
    engine: EnginesOption = None,
    dtype: DtypesOption = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-p", metavar="POLICY", help="Time this policy's decisions; default: a threshold."),
    ] = None,
    passes: PassesOption = 15,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the costs here, as JSON.")
    ] = None,
    data_root: DataRootOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure what leaving at each exit costs: operations, and time at every batch size.

    Examples:

        eenet profile run --batch-size 1,32,128 --out costs.json

        eenet profile run --engine eager --engine openvino --dtype float32 --out costs.json
    """
    output = Output(as_json=as_json, quiet=quiet)
    sizes = whole_numbers(batch_size, "--batch-size")
    chosen = names.engines(engine, dtype)
    if out is not None:
        paths.output_file(out)
    opened = loading.open_run(run, data_root)
    saved, model = (None, opened.model) if policy is None else loading.open_policy(policy, opened)
    inputs = opened.splits.test.inputs(slice(0, max(sizes)))
    engines = _engines(opened, model, chosen)

    from eenet.inference.measure import measure

    measured = measure(
        model,
        inputs,
        batch_sizes=sizes,
        engines=engines,
        passes=passes,
        policy=None if saved is None else saved.policy,
        seed=seed,
        progress=not quiet,
    )
    if measured.flops.uncounted:
        output.note(f"Note: operations not counted: {', '.join(measured.flops.uncounted)}.")
    if out is not None:
        measured.save(out)
        output.note(f"wrote {out}")
    value = measured.to_dict()
    output.result(value, *profile_tables(value), *value["notes"])


def bench(
    run: RunArgument,
    *,
    policy: PolicyFolderOption,
    batch_size: BatchSizesOption = "1,32,128",
    engine: EnginesOption = None,
    dtype: DtypesOption = None,
    passes: PassesOption = 7,
    samples: Annotated[int, typer.Option("--samples", min=1, help="How many test samples a pass covers.")] = 512,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the result here, as JSON.")
    ] = None,
    data_root: DataRootOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Time the adaptive model against the original one without exits, on the test samples.

    Examples:

        eenet bench run --policy policy --batch-size 1,32,128
    """
    output = Output(as_json=as_json, quiet=quiet)
    sizes = whole_numbers(batch_size, "--batch-size")
    chosen = names.engines(engine, dtype)
    if out is not None:
        paths.output_file(out)
    opened = loading.open_run(run, data_root)
    saved, model = loading.open_policy(policy, opened)
    engines = _engines(opened, model, chosen)
    dataset = _enough(opened.splits.test, sizes, samples)

    from eenet.core.files import write_json
    from eenet.inference.bench import bench as time_passes

    output.note(f"Timing {passes} passes over {len(dataset)} test samples.")
    report = time_passes(
        model,
        saved.policy,
        dataset.inputs(slice(None)),
        batch_sizes=sizes,
        engines=engines,
        passes=passes,
        seed=seed,
        progress=not quiet,
    )
    value = report.to_dict()
    if out is not None:
        write_json(out, value)
        output.note(f"wrote {out}")
    output.result(value, bench_table(value))


def _enough(dataset: LabelledDataset, sizes: list[int], samples: int) -> LabelledDataset:
    """Return the first samples, as many as asked for and at least one whole batch of the largest size."""
    if max(sizes) > len(dataset):
        raise InputError(
            f"--batch-size {max(sizes)} cannot be filled: there are {len(dataset)} test samples. Pass smaller sizes."
        )
    return dataset.select(slice(0, max(samples, *sizes)))


def _engines(opened: Run, model: MultiExitModel, chosen: list[tuple[str, str]]) -> list[Engine]:
    """Return the engines to measure, each in its number format."""
    example = opened.splits.test.inputs(slice(0, 2))
    return [names.engine(name, model, example, dtype) for name, dtype in chosen]
