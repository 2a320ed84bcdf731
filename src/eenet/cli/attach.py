"""`eenet attach`: exits for a model of timm, torchvision, Hugging Face, or of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import options
from eenet.cli.interrupt import require
from eenet.cli.output import Output, Result, percent
from eenet.cli.train import train_run
from eenet.errors import InputError
from eenet.report.sections import Block, Table
from eenet.tables.capacity import read_capacities

if TYPE_CHECKING:
    from eenet.experiments.recipes import Attachment, Run, Source
    from eenet.models import Capacities
    from eenet.models.inputs import Inputs
    from eenet.models.model import MultiExitModel
    from eenet.training.settings import TrainSettings

_LISTED = 20  # classes


@dataclass(frozen=True, kw_only=True)
class Making:
    """The options that say how a model is made, and where its exits go."""

    exits: Annotated[
        str | None,
        options.word("N|NAME,NAME", "How many (default: 4), the original output included; or the modules they read."),
    ] = None
    capacity: Annotated[
        list[str] | None,
        options.word(
            "C", "What a tier of devices holds: 1.2MB, '0.3M params', 20MFLOPs, 5ms; not with --exits. Repeatable."
        ),
    ] = None
    input_shape: Annotated[str | None, options.word("C,H,W", "Shape of a sample, or its tokens.", "--input")] = None
    num_classes: Annotated[int | None, options.count("Classes of a library's model, in place of its own.", 2)] = None
    weights: Annotated[Path | None, options.file_in("--weights", "Weights: .safetensors, .pt or a checkpoint.")] = None

    @property
    def shape(self) -> list[int] | None:
        """The shape of a sample, where it was given."""
        text = self.input_shape
        return None if text is None else options.whole_numbers(text, "--input", "3,224,224, or 64 tokens")

    def wanted(self) -> int | list[str] | Capacities:
        """Return where exits are to go, as `eenet.attach` takes it."""
        from eenet.models import Capacities

        if self.exits is not None and self.capacity:
            raise InputError(
                f"--exits {self.exits!r} and --capacity cannot be combined: both say where exits go. Pass one."
            )
        if self.capacity:
            return Capacities(tiers=read_capacities(self.capacity))
        exits = "4" if self.exits is None else self.exits
        named = [name.strip() for name in exits.split(",") if name.strip()]
        return int(exits) if options.is_count(exits.strip()) else named


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options that say how exits are trained."""

    epochs: Annotated[float, typer.Option(help="Passes over the training samples.")] = 5.0
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the model; default: 0.02, on texts 0.00005.")
    ] = None
    head_lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the early exits' heads; default: 0.05, on texts 0.001.")
    ] = None
    batch_size: Annotated[int, options.count("Samples per training step.")] = 32
    freeze: Annotated[bool, typer.Option("--freeze", help="Only the heads learn; the model stays as it is.")] = False

    def settings(self, data: str, seed: int) -> TrainSettings:
        """Return the settings for some data, once they are checked."""
        from eenet.experiments.recipes import attached

        learning = {name: value for name, value in asdict(self).items() if name != "freeze" and value is not None}
        return attached.training(data, **learning, heads_share=1.0 if self.freeze else 0.0, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The options that say what exits are trained on."""

    data: Annotated[
        str | None, options.word("DATA", "digits, cifar10, an .npz, a folder of images, or a .csv or .tsv of texts.")
    ] = None
    data_root: options.DataRootOption = None
    tokenizer: Annotated[Path | None, options.word("DIR", "Tokenizer of the texts; default: that of hf:FOLDER.")] = None
    columns: Annotated[str | None, options.word("LABEL,TEXT", "Names of these columns in the file of texts.")] = None

    def check(self, out: Path | None) -> None:
        """Refuse options that do not go together, or with the folder for the run."""
        if self.data is None and out is not None:
            raise InputError(
                f"--out {str(out)!r} would hold heads that have learnt nothing: there is no --data. Pass --data, or "
                "leave --out out to see where the exits sit."
            )
        if self.data is None and (self.tokenizer or self.columns):
            raise InputError(
                "--tokenizer and --columns say how texts are read: there is no --data. Pass --data, a file of texts."
            )
        if self.data is not None and out is None:
            raise InputError(f"--data {self.data!r} has nowhere to go: a trained run needs a folder. Pass --out RUN.")
        if self.tokenizer is not None:
            options.existing(self.tokenizer, "--tokenizer", folder=True)
        if self.columns is not None and self.named_columns is None:
            raise InputError(
                f"--columns {self.columns!r} are not two names: the column of labels is named first, then, after a "
                "comma, that of texts. Pass for example label,text."
            )

    @property
    def named_columns(self) -> tuple[str, str] | None:
        """The names of the columns of labels and texts, None where there are not two."""
        names = [name.strip() for name in (self.columns or "").split(",")]
        return (names[0], names[1]) if len(names) == 2 and all(names) else None

    def described(
        self, spec: str, source: Source, settings: TrainSettings, num_classes: int | None, weights: Path | None
    ) -> Attachment | None:
        """Return what is written down about a run on the data, which are of the model's kind; None without data."""
        from eenet.experiments.recipes import attached

        if self.data is None:
            return None
        return attached.describe(
            spec,
            source,
            data=self.data,
            settings=settings,
            root=self.data_root,
            num_classes=num_classes,
            weights=weights,
            tokenizer=self.tokenizer,
            columns=self.named_columns,
        )


SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="timm:NAME, torchvision:NAME, hf:FOLDER, or package.module:function.")
]


def attach(
    spec: SpecArgument,
    *,
    making: Making,
    samples: Data,
    training: Training,
    out: Annotated[Path | None, options.folder_out("Folder for the trained run.", "RUN")] = None,
    seed: options.SeedOption = 0,
    output: Output,
) -> Result:
    """Give exits to a model, check that samples can really leave there, and train them.

    Without --data the exits are attached, checked and listed. With --data they are trained into a run that record,
    profile, bench and run open; a run that was stopped continues when the command is repeated. Nothing is ever
    downloaded: a library's model begins with random weights unless --weights has better ones.

    Examples:

        eenet attach torchvision:resnet18 --exits layer1,layer2,layer3

        eenet attach torchvision:resnet18 --capacity 1MB --capacity 12MB

        eenet attach timm:resnet18 --input 1,32,32 --data digits --out run

        eenet attach timm:efficientnet_lite0 --weights trained.pth --data photos/ --out run

        eenet attach my_models:make --weights trained.pt --freeze --data images.npz --out run

        eenet attach hf:bert --data texts.csv --out run
    """
    return attached_run(spec, making, samples, training, out=out, seed=seed, output=output)


def attached_run(
    spec: str,
    making: Making,
    samples: Data,
    training: Training,
    *,
    out: Path | None,
    seed: int,
    output: Output,
    check: Callable[[dict[str, Any]], None] = lambda known: None,
) -> Result:
    """Do what `attach` does; ``check`` may refuse what is known of the model and the samples before the training."""
    samples.check(out)
    shape, num_classes, weights = making.shape, making.num_classes, making.weights
    require("torch")
    from eenet.experiments.recipes import attach_source, attached, load_source
    from eenet.models import Capacities

    wanted = making.wanted()
    settings = training.settings(samples.data or "", seed)
    if num_classes is None and samples.data is not None:
        num_classes = attached.wanted_classes(spec, samples.data, samples.data_root)
    source = load_source(spec, shape=shape, num_classes=num_classes, seed=seed)
    attachment, parts = samples.described(spec, source, settings, num_classes, weights), list[Block]()
    facts = {"run": None if out is None else str(out), "data": samples.data, "seed": seed}
    if attachment is not None and out is not None:
        # which modules capacities stand for is known once exits are attached: training then compares them
        if not isinstance(wanted, Capacities) and attached.is_trained(attachment, wanted, out, samples.data_root):
            return {"model": spec, **facts}, [f"{out} is trained already, with these settings: nothing is done."]
        counts, table = _counted(attachment, samples, output)
        facts, parts = facts | counts, [table]
        if num_classes is not None:
            parts.append(f"The last layer is made for {num_classes} classes.")
    output.note(f"Attaching exits to {spec}, for inputs of {','.join(map(str, source.shape))}.")
    model = attach_source(source, wanted, weights=weights, seed=seed)
    value, described = _described(spec, source, model)
    parts += described
    if attachment is not None and out is not None:
        check(value | facts)
        recipe = attached.attached_recipe(attachment.at(model, source.example_inputs), model)
        output.note(f"Training {recipe.summary}.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "data ", UserWarning)  # said when the samples were counted
            run = train_run(recipe, out, samples.data_root, output, "The same command goes on from there.")
            value["accuracy"], shown = _judged(run, output)
        parts += [shown, f"Trained {spec} with {model.num_exits} exits: {out}"]
    else:
        parts.append("The heads have learnt nothing yet: pass --data and --out to train them.")
    return {**value, **facts}, parts


def _counted(attachment: Attachment, samples: Data, output: Output) -> tuple[dict[str, Any], Table]:
    """Return how many samples of each class the splits have, once their files are checked."""
    from eenet.experiments.recipes import attached

    splits = attached.load_attached_data(attachment, samples.data_root, attachment.settings.seed)
    attached.check_files(splits, progress=not output.quiet)
    counts = attached.class_counts(splits)
    sizes = {name: len(splits.get(name)) for name in ("train", "calibration", "test")}
    used = [k for k in range(len(splits.classes)) if any(split[k] for split in counts.values())] if counts else []
    rows = [(splits.classes[k], *(str(split[k]) for split in counts.values())) for k in used[:_LISTED]]
    if len(used) > _LISTED:
        rows.append((f"and {len(used) - _LISTED} more", "", "", ""))
    rows.append(("together", *map(str, sizes.values())))
    named = {name: dict(zip(splits.classes, split, strict=True)) for name, split in counts.items()}
    return {"samples": sizes, "classes": named}, Table(("class", *sizes), rows, f"Samples of {samples.data}")


def _judged(run: Run, output: Output) -> tuple[list[float] | None, Block]:
    """Return how often every exit is right on the calibration set; the test set is left for the end."""
    from eenet import running
    from eenet.experiments.recipes import attached

    if attached.class_counts(run.splits) == {}:
        return None, "What the exits are worth, eenet record says."
    table = running.record(run.model, run.splits.calibration, progress=not output.quiet)
    accuracy = table.require_utility("attach").mean(axis=0).tolist()
    rows = [(str(k), percent(value)) for k, value in enumerate(accuracy)]
    return accuracy, Table(("exit", "accuracy"), rows, f"On {table.num_samples} samples of the calibration set")


def _described(spec: str, source: Source, model: MultiExitModel) -> tuple[dict[str, Any], list[Block]]:
    """Return what is known about a model with exits, as JSON values and as a table."""
    from eenet.running.measuring import count_parameters, measure_flops

    flops, parameters = measure_flops(model, source.example_inputs), count_parameters(model)
    rows: list[dict[str, Any]] = [
        {
            "exit": k,
            "module": module,
            "shape": shape,
            "flops": flops.cumulative[k],
            "share": flops.cumulative[k] / flops.reference,
            "parameters": parameters.up_to[k],
            "head_flops": flops.heads[k],
            "head_parameters": sum(parameter.numel() for parameter in model.heads[k].parameters()),
        }
        for k, (module, shape) in enumerate(_tapped(model, source.example_inputs))
    ]
    value = {
        "model": spec,
        "input": list(source.shape),
        "num_classes": source.num_classes,
        "num_exits": model.num_exits,
        "reference": flops.reference,
        "unit": "FLOPs",
        "uncounted": list(flops.uncounted),
        "exits": rows,
    }
    columns = {
        "exit": "{exit}",
        "module tapped": "{module}",
        "shape": "{size}",
        "of the FLOPs": "{share:.2%}",
        "parameters so far": "{parameters}",
        "its head": "{head_share:.2%}",
        "parameters of the head": "{head_parameters}",
    }
    printed = [
        row | {"size": " x ".join(map(str, row["shape"])), "head_share": row["head_flops"] / flops.reference}
        for row in rows
    ]
    title = f"{spec}: {flops.reference:.4g} FLOPs per {_unit(source)} without exits, {source.num_classes} classes"
    return value, [Table.of(printed, columns, title), *(f"Note: {said}" for said in [flops.not_counted()] if said)]


def _unit(source: Source) -> str:
    """Return what operations are counted for: a sample, or a text of as many tokens as the example."""
    from eenet.running.measuring import tokens_in

    tokens = tokens_in(source.example_inputs)
    return "sample" if tokens is None else f"text of {tokens} tokens"


def _tapped(model: MultiExitModel, inputs: Inputs) -> list[tuple[str, list[int]]]:
    """Return the module every exit reads and the shape of one sample of what it sees there."""
    import torch

    from eenet.models.inputs import evaluating

    whole: Any = model.whole
    with evaluating(whole), torch.no_grad():
        outputs = whole(inputs)
    modules = [*whole.names, "(original output)"]
    return [(name, list(tensor.shape[1:])) for name, tensor in zip(modules, outputs, strict=True)]
