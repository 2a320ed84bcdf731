"""Tiny data sets in their official layouts, written by the tests: colours and words tell the class.

Every function writes into a folder that is handed in (a data root) and returns it. Images are noise around a colour of
their class, so that a net can learn them; texts are words of their class.
"""

from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850")
WORDS = (("war", "vote", "treaty"), ("goal", "match", "coach"), ("stock", "bank", "profit"), ("chip", "planet", "code"))
CITYSCAPES_IDS = (0, 7, 8, 11, 23, 24, 26)  # unlabelled, road, sidewalk, building, sky, person, car


def picture(label: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return an image ``[height, width, 3]`` whose colour is that of its class."""
    rng = np.random.default_rng(seed)
    colour = np.random.default_rng(1000 + label).integers(40, 216, 3)
    return np.clip(colour + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def png(path: Path, size: tuple[int, int], depth: int, colour: int, rows: bytes) -> Path:
    """Write a PNG of a kind that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def write_cifar10(folder: Path, *, train: int = 40, held_out: int = 40, binary: bool = False) -> Path:
    """Write CIFAR-10: ``cifar-10-batches-py``, or ``cifar-10-batches-bin``; ``train`` is a multiple of 5."""
    target = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    target.mkdir(parents=True)
    labels = np.arange(train + held_out) % 10
    parts = [*np.split(np.arange(train), 5), np.arange(train, train + held_out)]
    for name, rows in zip([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"], parts, strict=True):
        pixels = _cifar_pixels(labels[rows], rows)
        if binary:
            (target / f"{name}.bin").write_bytes(np.hstack([labels[rows, None].astype(np.uint8), pixels]).tobytes())
        else:
            batch = {b"batch_label": name.encode(), b"labels": labels[rows].tolist(), b"data": pixels}
            names = [b"image_%d.png" % row for row in rows]
            (target / name).write_bytes(pickled(batch | {b"filenames": names}))
    return folder


def write_cifar100(folder: Path, *, train: int = 200, held_out: int = 200, binary: bool = False) -> Path:
    """Write CIFAR-100: ``cifar-100-python``, or ``cifar-100-binary``."""
    target = folder / ("cifar-100-binary" if binary else "cifar-100-python")
    target.mkdir(parents=True)
    names = [f"class_{number:03}" for number in range(100)]
    for part, rows in (("train", np.arange(train)), ("test", np.arange(train, train + held_out))):
        fine, coarse = rows % 100, rows % 20
        pixels = _cifar_pixels(fine, rows)
        if binary:
            records = np.hstack([coarse[:, None].astype(np.uint8), fine[:, None].astype(np.uint8), pixels])
            (target / f"{part}.bin").write_bytes(records.tobytes())
        else:
            labels = {b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
            (target / part).write_bytes(pickled(labels | {b"batch_label": part.encode(), b"data": pixels}))
    if binary:
        (target / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        (target / "meta").write_bytes(pickled({b"fine_label_names": [name.encode() for name in names]}))
    return folder


def _cifar_pixels(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    pictures = [picture(int(label), 32, 32, int(row)) for label, row in zip(labels, rows, strict=True)]
    return np.stack(pictures).transpose(0, 3, 1, 2).reshape(len(rows), -1)


def pickled(value: dict[bytes, object]) -> bytes:
    """Return a pickle as Python 2 and an old numpy wrote it, which new ones no longer write."""
    return b"\x80\x02" + _instructions(value) + b"."


def _instructions(value: object) -> bytes:
    match value:
        case bytes():
            return (b"U" + struct.pack("<B", len(value)) if len(value) < 256 else _long(value)) + value
        case int():
            return b"K" + struct.pack("<B", value) if value < 256 else b"J" + struct.pack("<i", value)
        case list():
            return b"]q\x01(" + b"".join(map(_instructions, value)) + b"e"
        case dict():
            return b"}q\x02(" + b"".join(map(_instructions, (part for pair in value.items() for part in pair))) + b"u"
        case np.ndarray():
            rows, columns = map(_instructions, value.shape)
            number = (
                b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            )
            made = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
            content = value.tobytes()
            return made + b"(K\x01" + rows + columns + b"\x86" + number + b"\x89" + _long(content) + content + b"tb"
        case _:
            raise TypeError(value)


def _long(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value))


# --- ImageNet --------------------------------------------------------------------------------------------------------


def write_imagenet(folder: Path, *, train: int = 30, held_out: int = 30, flat: bool = False) -> Path:
    """Write ImageNet: ``imagenet/train`` and ``imagenet/val``, the latter flat with its list if asked for."""
    target = folder / "imagenet"
    solution = []
    for row in range(train + held_out):
        label = row % len(WNIDS)
        pixels = picture(label, 48 + 4 * (row % 5), 64 - 4 * (row % 3), row)
        if row < train:
            save(target / "train" / WNIDS[label] / f"{WNIDS[label]}_{row}.JPEG", pixels)
            continue
        name = f"ILSVRC2012_val_{row - train + 1:08}"
        save(target / "val" / ("" if flat else WNIDS[label]) / f"{name}.JPEG", pixels)
        solution.append((name, f"{WNIDS[label]} 1 2 30 40 {WNIDS[label]} 3 4 50 60 "))
    if flat:
        _write_csv(target / "LOC_val_solution.csv", [("ImageId", "PredictionString"), *reversed(solution)])
    return folder


def write_tiny_imagenet(folder: Path, *, train: int = 30, held_out: int = 30) -> Path:
    """Write Tiny-ImageNet: ``tiny-imagenet-200``, with some grey images."""
    target = folder / "tiny-imagenet-200"
    notes = []
    for row in range(train + held_out):
        wnid = WNIDS[row % len(WNIDS)]
        pixels = picture(row % len(WNIDS), 64, 64, row)
        if row < train:
            save(target / "train" / wnid / "images" / f"{wnid}_{row}.JPEG", pixels if row % 7 else pixels[:, :, 0])
        else:
            save(target / "val" / "images" / f"val_{row - train}.JPEG", pixels)
            notes.append(f"val_{row - train}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (target / "val" / "val_annotations.txt").write_text("".join(notes))
    (target / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (target / "words.txt").write_text("".join(f"{wnid}\tthing {k}, object {k}\n" for k, wnid in enumerate(WNIDS)))
    return folder


def write_tiny_imagenet_packed(folder: Path, *, train: int = 30, held_out: int = 30) -> Path:
    """Write Tiny-ImageNet as JPEG files joined: ``tiny_imagenet_subset``."""
    target = folder / "tiny_imagenet_subset"
    target.mkdir(parents=True)
    for part, rows in (("train", range(train)), ("val", range(train, train + held_out))):
        files = []
        for row in rows:
            buffer = io.BytesIO()
            Image.fromarray(picture(row % 3, 64, 64, row)).save(buffer, "JPEG", quality=95)
            files.append(buffer.getvalue())
        offsets = np.cumsum([0, *map(len, files)])
        jpeg = np.frombuffer(b"".join(files), np.uint8)
        np.savez(target / f"{part}.npz", jpeg=jpeg, offsets=offsets, labels=np.array(rows) % 3)
    _write_csv(
        target / "classes.csv", [("label", "wnid", "name"), *((k, w, f"thing {k}") for k, w in enumerate(WNIDS))]
    )
    return folder


# --- segmentation ----------------------------------------------------------------------------------------------------


def write_cityscapes(folder: Path, *, train: int = 8, held_out: int = 8, size: tuple[int, int] = (64, 128)) -> Path:
    """Write Cityscapes: ``cityscapes/leftImg8bit`` and ``cityscapes/gtFine``, two halves of different classes each."""
    target = folder / "cityscapes"
    for row in range(train + held_out):
        part, city = (
            ("train", ("aachen", "bochum")[row % 2]) if row < train else ("val", ("lindau", "munster")[row % 2])
        )
        pixels, mask = scene([*CITYSCAPES_IDS], size, row)
        name = f"{city}_{row:06}_000019"
        save(target / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", pixels)
        save(target / "gtFine" / part / city / f"{name}_gtFine_labelIds.png", mask)
    return folder


def write_camvid(folder: Path, *, train: int = 8, held_out: int = 8, size: tuple[int, int] = (48, 64)) -> Path:
    """Write CamVid in the layout of the SegNet tutorial: ``camvid``; ``held_out`` images each of val and test."""
    target = folder / "camvid"
    for part, rows in (("train", range(train)), ("val", range(held_out)), ("test", range(held_out))):
        for row in rows:
            pixels, mask = scene([*range(12)], size, 100 * len(part) + row)
            save(target / part / f"0001TP_{row:06}.png", pixels)
            save(target / f"{part}annot" / f"0001TP_{row:06}.png", mask)
    return folder


def scene(numbers: list[int], size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its mask: the upper half of one class, the lower half of another."""
    height, width = size
    upper, lower = np.random.default_rng(seed).choice(numbers, 2, replace=False).tolist()
    mask = np.full(size, lower, dtype=np.uint8)
    mask[: height // 2] = upper
    pixels = picture(lower, height, width, seed)
    pixels[: height // 2] = picture(upper, height // 2, width, seed + 1)
    return pixels, mask


# --- texts -----------------------------------------------------------------------------------------------------------


def write_sst2(folder: Path, *, train: int = 40, held_out: int = 20) -> Path:
    """Write SST-2 as GLUE does: ``sst2_glue``; ``held_out`` sentences each of dev and test."""
    target = folder / "sst2_glue"
    target.mkdir(parents=True)
    for part, count in (("train", train), ("dev", held_out), ("test", held_out)):
        lines = [f"{row % 2}\t{_words(row % 2, row, part)} .\n" for row in range(count)]
        (target / f"{part}.tsv").write_text("label\tsentence\n" + "".join(lines), encoding="utf-8")
    return folder


def write_ag_news(folder: Path, *, train: int = 80, held_out: int = 20, part_of_it: bool = False) -> Path:
    """Write AG News: ``ag_news`` with the official CSV files, or with the TSV files of a part of it."""
    target = folder / "ag_news"
    target.mkdir(parents=True)

    def rows(part: str, count: int) -> list[tuple[int, str, str]]:
        return [(row % 4, f"Title {row} of {part}", f"{_words(row % 4, row, part)}.") for row in range(count)]

    if not part_of_it:
        for part, count in (("train", train), ("test", held_out)):
            _write_csv(target / f"{part}.csv", [(k + 1, title, text) for k, title, text in rows(part, count)])
        return folder
    full = [(k, f"{title} {text}") for k, title, text in rows("train", train)]
    described = [(k, text) for k, _, text in rows("desc", train)]
    test = [(k, f"{title} {text}") for k, title, text in rows("test", held_out)]
    files = {"full_train_5k": full, "mixed_train": full + described, "desc_train": described, "full_test": test}
    for name, pairs in files.items():
        lines = [f"{label}\t{text}\n" for label, text in pairs]
        (target / f"{name}.tsv").write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return folder


def write_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of Hugging Face that knows the words of these texts, into ``folder`` itself; returns it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    words = [
        *special,
        ".",
        "title",
        "of",
        "in",
        "train",
        "dev",
        "test",
        "desc",
        *(word for part in WORDS for word in part),
    ]
    words += [str(number) for number in range(200)]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return folder


def _words(label: int, row: int, part: str) -> str:
    """Return a sentence of its class that no other row has."""
    chosen = np.random.default_rng(row).choice(WORDS[label], 3 + row % 4).tolist()
    number = "".join("abcdefghij"[int(digit)] for digit in str(row))  # a word, since digits are not compared
    return " ".join(["in", part, number, *chosen])


def _write_csv(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, quoting=csv.QUOTE_ALL).writerows(rows)
