"""`eenet profile` and `eenet bench`: what exits cost, and what stopping early really saves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eenet.cli import loading, names, options
from eenet.cli.output import Output, Result
from eenet.cli.screen import AllOption, bench_parts
from eenet.errors import InputError
from eenet.report import costs_section, sizes_section

if TYPE_CHECKING:
    from eenet.experiments.recipes import Run

PassesOption = Annotated[int, options.count("How often everything is timed.")]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The options that say what is timed."""

    run: options.RunArgument
    batch_size: Annotated[str, options.word("N,N,...", "Batch sizes to measure, separated by commas.")] = "1,32,128"
    engine: Annotated[
        list[str] | None,
        options.word("E", "Engine to measure: eager (default), onnxruntime, openvino, compiled. Repeatable."),
    ] = None
    dtype: Annotated[
        list[str] | None, options.word("D", "Number format to measure: float32 (default), bfloat16. Repeatable.")
    ] = None
    data_root: options.DataRootOption = None
    seed: options.SeedOption = 0
    force: options.ForceOption = False
    parts: options.PartsOption = None

    def open(self, policy: Path | None, output: Output, *, real: bool) -> tuple[Run, dict[str, Any]]:
        """Return the run, its data ``real`` or replaced where they are gone, and what `measure` and `bench` take."""
        sizes = list(dict.fromkeys(options.whole_numbers(self.batch_size, "--batch-size")))
        chosen = names.engines(self.engine, self.dtype)
        opened = loading.open_run(self.run, self.data_root)
        if real and max(sizes) > (count := len(opened.splits.test)):
            raise InputError(
                f"--batch-size {max(sizes)} cannot be filled: there are {count} test samples. Pass smaller sizes."
            )
        saved, model = None, opened.model
        if policy is not None:
            saved, model = loading.open_policy(policy, opened, output, force=self.force, parts=self.parts)
        decides = None if saved is None else saved.policy
        example, gone = opened.example()
        if gone:
            output.note(f"Note: {gone}")
        engines = [names.engine(name, model, example, dtype) for name, dtype in chosen]
        settings = {"model": model, "policy": decides, "batch_sizes": sizes, "engines": engines, "seed": self.seed}
        return opened, settings


def profile(
    timing: Timing,
    *,
    policy: Annotated[Path | None, options.POLICY_OPTION] = None,
    passes: PassesOption = 15,
    out: Annotated[Path | None, options.file_out("Write the costs here, as JSON.", ".json")] = None,
    output: Output,
) -> Result:
    """Measure what leaving at each exit costs: parameters, operations, and time.

    With --policy, that policy's decisions are timed, and its numbers counted; without, a threshold's are timed.

    Examples:

        eenet profile run --batch-size 1,32,128 --out costs.json

        eenet profile run --engine eager --engine openvino --dtype float32 --out costs.json
    """
    opened, settings = timing.open(policy, output, real=False)
    inputs, _ = opened.example(max(settings["batch_sizes"]))

    from eenet.running import measure
    from eenet.running.measuring import tokens_in

    measured = measure(example_inputs=inputs, passes=passes, progress=not output.quiet, **settings)
    if measured.flops is not None and (said := measured.flops.not_counted()):
        output.note(f"Note: {said}")
    value = measured.to_dict()
    output.save(value, out, sealed=True)
    heading = "Time per sample: {engine} {dtype} on {device}, batch size {batch_size}, {threads} threads"
    times = [replace(costs_section(row), heading=heading.format(**row)) for row in value["latency"]]
    operations, tokens = costs_section(value["flops"]), tokens_in(inputs)
    if tokens is not None:
        operations = replace(operations, heading=f"{operations.heading}, of texts of {tokens} tokens, padding included")
    return value, [sizes_section(value), operations, *times, *value["notes"]]


def bench(
    timing: Timing,
    *,
    policy: Annotated[Path, options.POLICY_OPTION],
    passes: PassesOption = 7,
    samples: Annotated[int, options.count("How many test samples a pass covers.")] = 512,
    out: Annotated[Path | None, options.file_out("Write the result here, as JSON.", ".json")] = None,
    everything: AllOption = False,
    output: Output,
) -> Result:
    """Time the adaptive model against the original one without exits, on the test samples.

    Examples:

        eenet bench run --policy policy --batch-size 1,32,128
    """
    opened, settings = timing.open(policy, output, real=True)
    test, largest = opened.splits.test, max(settings["batch_sizes"])
    inputs = test.inputs(slice(0, max(samples, largest)))

    from eenet import running

    output.note(f"Timing {passes} passes over {min(len(test), max(samples, largest))} test samples.")
    value = running.bench(
        inputs=inputs, passes=passes, progress=not output.quiet, check_source=not timing.force, **settings
    ).to_dict()
    output.save(value, out)
    return value, bench_parts(value, everything=everything)
