"""Runs of somebody else's model: what is written down about them, and how they are made again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from eenet import environment
from eenet.errors import DataError, InputError
from eenet.experiments.data.arrays import load_digits, load_image_arrays
from eenet.experiments.data.cifar import load_cifar10
from eenet.experiments.data.dataset import IMAGENET, SPLITS, ArrayDataset, DataSplits, Normalisation, Split, as_images
from eenet.experiments.data.imagenet import load_image_folder
from eenet.experiments.data.scenes import load_mask_folder
from eenet.experiments.data.texts import SUFFIXES, TextDataset, load_text_file
from eenet.experiments.recipes.recipe import RECIPE_FILE, Recipe, require_same, require_same_samples
from eenet.experiments.recipes.sources import Source, attach_source, known_classes, load_source
from eenet.libraries import pretrained
from eenet.models.inputs import Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.running.pictures import check_each
from eenet.running.texts import load_tokenizer
from eenet.tables.files import read_object, sha256
from eenet.training.fit import FINAL_WEIGHTS
from eenet.training.settings import TrainSettings, attached_settings

ATTACHED = "attached"
DATA_SETS = ("digits", "cifar10")
_TRAINING = ("epochs", "batch_size", "lr", "head_lr", "heads_share")


def training(data: str = "", **chosen: Any) -> TrainSettings:  # noqa: ANN401 - of `TrainSettings`
    """Return how attached exits are trained on some data, unless something else is chosen."""
    return attached_settings(texts=_is_text(data), **chosen)


def _is_text(data: str) -> bool:
    return data not in DATA_SETS and Path(data).suffix.lower() in SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """All that is needed to make somebody else's model with its exits again, but for the weights. It contains no code.

    Attributes:
        model: Where the model comes from, see `load_source`.
        exits: Names of the tapped modules.
        input: Shape of one sample.
        num_classes: Passed to timm, torchvision or transformers, if anything.
        classes: How many classes the model has.
        weights: SHA-256 of the state dict that the model began with, if any.
        normalisation: How images are prepared; None: as the data set's own ones are.
        data: ``digits``, ``cifar10``, a ``.npz`` file, a folder with one of images per class or with masks, or a file
            of texts.
        settings: How the exits are trained.
        tokenizer: Folder of what cuts texts; None: that of the model.
        columns: Names of the columns of labels and texts, where they were given.
        shortest: Fewest tokens that the stages take; None: all texts are padded to the length of ``input``.
    """

    model: str
    exits: tuple[str, ...]
    input: tuple[int, ...]
    num_classes: int | None
    classes: int
    weights: str | None
    normalisation: Normalisation | None
    data: str
    settings: TrainSettings
    tokenizer: str | None = None
    columns: tuple[str, str] | None = None
    shortest: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; a run folder keeps the seed beside them."""
        known = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "settings"}
        known["training"] = {name: getattr(self.settings, name) for name in _TRAINING}
        value: dict[str, Any] = json.loads(json.dumps(known))
        return value

    def at(self, model: MultiExitModel, example: Inputs) -> Attachment:
        """Return the same for a model with exits: with the modules after which they sit, and the lengths it takes."""
        names: Any = model.whole.names  # type: ignore[union-attr]
        return replace(self, exits=tuple(names), shortest=_shortest(model, example))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Attachment:
        """Rebuild it from the content of a run folder: `to_dict` and the seed.

        Raises:
            KeyError, TypeError, ValueError: A value is missing, of another kind, or cannot be used.
        """
        scale, columns, tokenizer = value["normalisation"], value.get("columns"), value.get("tokenizer")
        number, weights, shortest = value["num_classes"], value["weights"], value.get("shortest")
        return cls(
            model=str(value["model"]),
            num_classes=None if number is None else int(number),
            classes=int(value["classes"]),
            weights=None if weights is None else str(weights),
            data=str(value["data"]),
            tokenizer=None if tokenizer is None else str(tokenizer),
            columns=None if columns is None else (str(columns[0]), str(columns[1])),
            shortest=None if shortest is None else int(shortest),
            exits=tuple(str(name) for name in value["exits"]),
            input=tuple(int(size) for size in value["input"]),
            normalisation=None if scale is None else (tuple(map(float, scale[0])), tuple(map(float, scale[1]))),
            settings=training(str(value["data"]), **value["training"], seed=int(value["seed"])),
        )


def _shortest(model: MultiExitModel, example: Inputs) -> int | None:
    """Return the fewest tokens that stages take, None where texts must have one length.

    They must where the stages were cut for one length, and where answers depend on how far a text is padded, as those
    of heads that read the last token do.
    """
    limits = getattr(model.entry, "limits", {})
    if isinstance(example, Tensor) or len(limits) != 1 or "attention_mask" not in example:
        return None
    ((low, _),) = limits.values()
    real = int(example["attention_mask"][1].sum())  # the second is the shorter one
    padded, cut = ({name: leaf[1:, :end] for name, leaf in example.items()} for end in (None, max(low, real)))
    with evaluating(model), torch.no_grad():
        pairs = zip(model(padded), model(cut), strict=True)
        return low if all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs) else None


def describe(
    spec: str,
    source: Source,
    *,
    data: str,
    settings: TrainSettings,
    root: Path | None = None,
    num_classes: int | None = None,
    weights: Path | None = None,
    tokenizer: Path | None = None,
    columns: tuple[str, str] | None = None,
) -> Attachment:
    """Return what must be written down about a source's model so that its run can be opened again; `at` adds the exits.

    Raises:
        DataError: The data are of no known kind, or of another one than the model takes or answers about.
        InputError: There is a tokenizer, or there are columns, and the data are no texts.
    """
    kind, answers = data_kind(data, root)
    if (kind, answers) != (source.takes, source.answers):
        shape = ",".join(map(str, source.shape))
        raise DataError(
            f"data {data!r} do not fit: each {kind} has a class per {answers}, and {spec} takes {shape} "
            f"({source.takes}) and answers per {source.answers}. Pass data of that kind; or train with fit_exits or a "
            "loop of your own, and record with eenet.record."
        )
    if kind != "text" and (tokenizer or columns):
        raise InputError(f"--tokenizer and --columns do not fit: data {data!r} are no texts. Leave them out.")
    folder = spec.removeprefix("hf:")
    return Attachment(
        model=f"hf:{Path(folder).resolve()}" if folder != spec else spec,
        exits=(),
        input=source.shape,
        num_classes=num_classes,
        classes=source.num_classes,
        weights=None if weights is None else sha256(weights),
        normalisation=source.normalisation,
        data=data if data in DATA_SETS else str(Path(data).resolve()),
        settings=settings,
        tokenizer=None if tokenizer is None else str(tokenizer.resolve()),
        columns=columns,
    )


def attached_recipe(
    attachment: Attachment, model: MultiExitModel | None = None, *, opened: Path | None = None
) -> Recipe:
    """Return a recipe that makes a model with attached exits, or continues with one that is made already.

    Args:
        attachment: What is known about it.
        model: The model, where it is made already.
        opened: The folder of the run, where it is opened again.
    """

    def make() -> MultiExitModel:
        if model is not None:
            return model
        seed, classes = attachment.settings.seed, attachment.num_classes
        source = load_source(attachment.model, shape=attachment.input, num_classes=classes, seed=seed)
        return attach_source(source, attachment.exits, seed=seed)

    return Recipe(
        name=ATTACHED,
        summary=f"{attachment.model} with {len(attachment.exits) + 1} exits",
        make=make,
        data=partial(load_attached_data, attachment, opened=opened),
        settings=attachment.settings,
        needs_root=attachment.data == "cifar10",
        details=attachment.to_dict(),
    )


def is_trained(attachment: Attachment, exits: int | Sequence[str], out: Path, data_root: Path | None = None) -> bool:
    """Return whether a folder has the finished run of an attachment, before its exits are attached.

    Raises:
        DataError: The data are missing or damaged.
        InputError: It has a run with other settings; these are listed. Or the data have changed since.
    """
    if not (out / RECIPE_FILE).exists():
        return False
    found, seed = read_object(out / RECIPE_FILE, "run"), attachment.settings.seed
    wanted = {"recipe": ATTACHED, **attachment.to_dict(), "seed": seed}
    kept: Any = found.get("exits") if isinstance(found.get("exits"), list) else []
    if isinstance(exits, int):  # modules are known once exits are attached
        found["exits"], wanted["exits"] = f"{len(kept) + 1} exits", f"{exits} exits"
    else:
        wanted["exits"] = list(exits)
    wanted.pop("shortest")
    require_same(found, wanted, out)
    if not (out / FINAL_WEIGHTS).is_file():
        return False
    splits = load_attached_data(attachment, data_root, attachment.settings.seed, opened=out)
    require_same_samples(splits.train, attachment.data, out)
    return True


# --- data -------------------------------------------------------------------------------------------------------------


def wanted_classes(spec: str, data: str, root: Path | None) -> int | None:
    """Return how many classes a library's model must be made with for some data; None where it decides itself."""
    if spec.partition(":")[0] not in ("timm", "torchvision") or data_kind(data, root) != ("image", "sample"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are said when the samples are loaded
        return len(_images(data, root).classes)


def data_kind(data: str, root: Path | None) -> tuple[str, str]:
    """Return what a sample of some data is (``image``, ``text``), and what has a class (``sample``, ``pixel``).

    Raises:
        DataError: The data are of no known kind.
    """
    path = _place(data, root)
    if data in DATA_SETS or path.suffix.lower() == ".npz":
        return "image", "sample"
    if _is_text(data):
        return "text", "sample"
    if path.is_dir():
        return "image", "pixel" if (path / "images").is_dir() and (path / "masks").is_dir() else "sample"
    raise DataError(
        f"data {data!r} are not there, or of no known kind: there are {' and '.join(DATA_SETS)}, images in a file .npz "
        f"or in a folder per class, a folder with images, masks and classes.txt, and texts in a {' '.join(SUFFIXES)} "
        "file. Pass one of them."
    )


def _place(data: str, root: Path | None) -> Path:
    """Return where data of one's own are: they may have moved to ``root``."""
    path = Path(data)
    moved = None if root is None else root / path.name
    return moved if moved is not None and moved.exists() else path


def load_attached_data(
    attachment: Attachment, root: Path | None, seed: int, *, opened: Path | None = None
) -> DataSplits:
    """Return an attached run's data as the model takes it; data of one's own may have moved to ``root``.

    ``opened`` is the folder of the run, where it is opened again: messages then say where the data were.

    Raises:
        DataError: The data are missing or damaged, or do not fit the model.
    """
    data, scale = attachment.data, attachment.normalisation
    if opened is not None and data not in DATA_SETS and not _place(data, root).exists():
        raise DataError(
            f"data {data} are gone: the run {opened} was trained on them, and its samples are needed here. Put them "
            f"back, or pass --data-root with the folder that contains {Path(data).name} now."
        )
    if data_kind(data, root)[0] == "text":
        splits = _texts(attachment, _place(data, root), seed)
    else:
        found = _images(data, root, seed=seed, size=attachment.input[1:], normalisation=scale)
        splits = DataSplits(load=lambda split: _fitted(as_images(found.load(split)), attachment), classes=found.classes)
    known = len(splits.classes)
    if known > attachment.classes:
        raise DataError(
            f"data {data!r} have {known} classes, the model has {attachment.classes}: it cannot name all. "
            f"Pass --num-classes {known}, or make the model so."
        )
    more = tuple(str(k) for k in range(known, attachment.classes))
    return replace(splits, classes=(*splits.classes, *more))


def class_counts(splits: DataSplits) -> dict[str, list[int]]:
    """Return how many samples of each class every split has; empty where a sample has several classes."""
    try:
        labels = {name: splits.load(name).labels for name in ("train", "calibration", "test")}
    except InputError:
        return {}
    return {name: torch.bincount(one, minlength=len(splits.classes)).tolist() for name, one in labels.items()}


def check_files(splits: DataSplits, *, progress: bool = True) -> None:
    """Refuse data with image files that cannot be read, as far as their headers say.

    Raises:
        DataError: They cannot.
    """
    parts = [splits.load(split) for split in SPLITS]
    held = [files for part in parts if isinstance(part, ArrayDataset) for files in part.files]
    check_each([(files.check, path) for files in held for path in files.paths], progress=progress)


def _images(
    data: str,
    root: Path | None,
    *,
    seed: int = 0,
    size: tuple[int, ...] = (224, 224),
    normalisation: Normalisation | None = None,
) -> DataSplits:
    if data == "digits":
        return load_digits(seed=seed)
    if data == "cifar10":
        root = environment.data_folder() if root is None else root
        if root is None:
            raise DataError(
                "data root is missing: cifar10 is read from a folder. Pass --data-root with that folder, or set "
                f"{environment.DATA}."
            )
        return load_cifar10(root, seed=seed)
    path = _place(data, root)
    if path.suffix.lower() == ".npz":
        return load_image_arrays(path, seed=seed, normalisation=normalisation)
    if data_kind(data, root)[1] == "pixel":
        return load_mask_folder(path, seed=seed, size=(size[0], size[1]))
    # the middle square is taken
    return load_image_folder(path, seed=seed, size=max(size), normalisation=normalisation or IMAGENET)


def _fitted(dataset: ArrayDataset, attachment: Attachment) -> ArrayDataset:
    """Return a data set with the channels and the size that the model takes."""
    channels, height, width = attachment.input
    images, found = dataset.images, dataset.images.shape[1]
    if isinstance(images, Tensor) and found == 1 and channels > 1:  # grey as every colour
        mean, std = dataset.mean * channels, dataset.std * channels
        dataset = ArrayDataset(images.expand(-1, channels, -1, -1), dataset.labels, mean=mean, std=std)
    elif found != channels:
        raise DataError(
            f"data {attachment.data!r} have {found} channels, the model takes {channels}: they do not fit. Pass images "
            f"of {channels} channels, or --input {found},{height},{width} where the model can be made so."
        )
    scale = attachment.normalisation
    fits = scale is not None and len(scale[0]) == channels and not isinstance(dataset.images, Tensor)
    return dataset.resized((height, width), scale if fits else None)


def _texts(attachment: Attachment, path: Path, seed: int) -> DataSplits:
    """Return texts as token numbers and masks of the length that a model of transformers was attached with."""
    folder, width = Path(attachment.model.removeprefix("hf:")), attachment.input[0]
    config = pretrained("AutoConfig", folder, "model")
    place = folder if attachment.tokenizer is None else Path(attachment.tokenizer)
    tokenizer, padding = load_tokenizer(place), getattr(config, "pad_token_id", None)
    if padding is not None and 0 <= padding != tokenizer.pad_token_id:
        raise DataError(
            f"tokenizer {place} pads with {tokenizer.pad_token_id}, the model {folder} with {padding}: they do not "
            "belong together. Pass the tokenizer of the model."
        )
    splits = load_text_file(
        path,
        tokenizer,
        seed=seed,
        max_tokens=width,
        columns=attachment.columns,
        classes=known_classes(config) if attachment.num_classes is None else None,
    )

    def load(split: Split) -> TextDataset:
        texts = cast("TextDataset", splits.load(split))
        largest = int(texts.tokens.max())
        if largest >= config.vocab_size:
            raise DataError(
                f"tokenizer {place} makes the token {largest} of a text, the model {folder} knows {config.vocab_size}: "
                "they do not belong together. Pass the tokenizer of the model."
            )
        assert texts.preparation is not None  # a tokenizer made them
        least, fixed = attachment.shortest or 1, width if attachment.shortest is None else None
        return texts.prepared(replace(texts.preparation, named=True, width=fixed, least=least))

    return DataSplits(load=load, classes=splits.classes)
