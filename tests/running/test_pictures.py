"""Image files: what a person sees is what is read, by every route; what cannot be read rightly is refused by name."""

import re
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_data import png

from eenet.errors import DataError, EenetError
from eenet.running.pictures import check_each, check_picture, images_in, picture_size, read_image, read_picture

SMOOTH = np.clip(np.add.outer(np.arange(40) * 2, np.arange(60) * 2)[..., None] + [0, 20, 40], 0, 255).astype(np.uint8)
GREY = SMOOTH[..., 0]
TURNED = {  # by the orientation in EXIF: where rows and columns of the stored picture come from
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: np.rot90,
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, 3),
}


def written(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_photos_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path / f"a.{suffix}", TURNED[orientation](SMOOTH), exif=exif, **options)
    found = read_picture(path)
    assert found.shape == SMOOTH.shape == (*picture_size(path), 3)
    assert np.abs(found.astype(int) - SMOOTH).max() <= (8 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_picture(written(tmp_path / "a.png", SMOOTH, exif=exif)), SMOOTH)
    assert np.array_equal(read_picture(written(tmp_path / "a.png", SMOOTH, exif=b"Exif\0\0MM\0*damaged")), SMOOTH)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "png", "tif", "webp"])
def test_every_format_gives_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}", SMOOTH, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_picture(path), SMOOTH)
    assert np.array_equal(read_picture(BytesIO(path.read_bytes()), name="sent"), SMOOTH)
    with path.open("rb") as file:
        assert np.array_equal(read_picture(file), SMOOTH)


def transparent(suffix: str, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Return a picture whose left half is transparent, over a colour that nobody sees, and what is seen."""
    seen, alpha = SMOOTH.copy(), np.full(GREY.shape, 255, np.uint8)
    seen[:, :30], alpha[:, :30] = 255, 0
    hidden = SMOOTH.copy()
    hidden[:, :30] = 77
    if suffix == "grey":
        return written(tmp_path / "a.png", np.dstack([hidden[..., 0], alpha])), seen[..., :1].repeat(3, axis=2)
    if suffix == "palette":
        one = Image.fromarray((alpha // 255).astype(np.uint8), "P")
        one.putpalette([77, 77, 77, 10, 20, 30])
        seen[:, 30:] = 10, 20, 30
        return written(tmp_path / "a.png", one, transparency=0), seen
    if suffix == "gif":
        one = Image.fromarray((alpha // 255).astype(np.uint8), "P")
        one.putpalette([77, 77, 77, 10, 20, 30])
        seen[:, 30:] = 10, 20, 30
        return written(tmp_path / "a.gif", one, transparency=0), seen
    if suffix == "one colour":
        seen[:, 30:], hidden[:, 30:] = 5, 5
        return written(tmp_path / "a.png", hidden, transparency=(77, 77, 77)), seen
    return written(tmp_path / f"a.{suffix}", np.dstack([hidden, alpha]), lossless=True), seen


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "grey", "palette", "gif", "one colour"])
def test_what_is_transparent_is_white(tmp_path: Path, suffix: str) -> None:
    path, seen = transparent(suffix, tmp_path)
    assert np.array_equal(read_picture(path), seen)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    half = written(tmp_path / "a.png", np.full((2, 2, 4), [100, 0, 255, 128], np.uint8))
    assert np.abs(read_picture(half)[0, 0] - np.array([177.2, 127, 255])).max() <= 1


def test_colour_models_and_depths_that_are_read(tmp_path: Path) -> None:
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    for path in (written(tmp_path / "a.jpg", cmyk, quality=98), written(tmp_path / "a.tif", cmyk)):
        assert np.abs(read_picture(path).astype(int) - SMOOTH).max() <= 6
        assert (
            np.abs(read_picture(path, 1)[..., 0].astype(int) - np.asarray(Image.fromarray(SMOOTH).convert("L"))).max()
            <= 6
        )
    assert np.array_equal(read_picture(written(tmp_path / "b.png", GREY > 99))[..., 1], np.where(GREY > 99, 255, 0))
    assert np.array_equal(read_picture(written(tmp_path / "c.png", GREY)), GREY[..., None].repeat(3, axis=2))
    palette = Image.fromarray(SMOOTH).quantize(16)
    assert np.array_equal(read_picture(written(tmp_path / "d.png", palette)), np.asarray(palette.convert("RGB")))
    four = png(tmp_path / "e.png", (1, 4), 4, 0, b"\0\x05\xaf")
    assert read_picture(four, 1).tolist() == [[[0], [85], [170], [255]]]


DEEP = {
    "a.png": lambda path: written(path, GREY.astype(np.uint16) * 257),
    "a.tif": lambda path: written(path, GREY.astype(np.uint16) * 257),
    "b.tif": lambda path: written(path, GREY.astype(np.int32)),
    "c.tif": lambda path: written(path, GREY.astype(np.float32) / 255),
    "d.tif": lambda path: written(path, Image.fromarray(SMOOTH).convert("LAB")),
    "b.png": lambda path: png(path, (1, 1), 16, 2, b"\0" + b"\1\2" * 3),
    "c.png": lambda path: png(path, (1, 1), 16, 6, b"\0" + b"\1\2" * 4),
    "d.png": lambda path: png(path, (1, 1), 16, 4, b"\0" + b"\1\2" * 2),
}


@pytest.mark.parametrize("name", DEEP)
def test_pixels_of_another_scale_are_refused(tmp_path: Path, name: str) -> None:
    path = DEEP[name](tmp_path / name)
    for read in (read_picture, check_picture, lambda path: read_image(path, (8, 8), channels=1)):
        with pytest.raises(DataError, match=rf"{name} has pixels of mode .*: 8 bits per channel of grey, RGB or CMYK"):
            read(path)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_several_pictures_none_is_chosen(tmp_path: Path, suffix: str) -> None:
    first, *others = (Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 100, 200))
    path = written(tmp_path / f"a.{suffix}", first, save_all=True, append_images=others)
    for read in (read_picture, check_picture):
        with pytest.raises(DataError, match=rf"a\.{suffix} has several frames or pages"):
            read(path)
    phone = written(tmp_path / "a.mpo", first, save_all=True, append_images=others)  # a photo with its preview
    assert read_picture(phone).shape == (8, 8, 3)


BAD = {
    "is missing": lambda path: None,
    "is damaged or no image": lambda path: path.write_text("no image"),
    "cannot be read: ": lambda path: path.mkdir(),
    "is refused: Image size": lambda path: png(path, (60_000, 60_000), 8, 0, b"\0"),
}


@pytest.mark.parametrize("fact", BAD)
def test_what_cannot_be_opened_is_named(tmp_path: Path, fact: str) -> None:
    path = tmp_path / "a.png"
    BAD[fact](path)
    for read in (read_picture, check_picture, picture_size):
        with pytest.raises(DataError, match=rf"image {re.escape(str(path))} {fact}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "tif", "webp"])
def test_cut_off_files_are_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, SMOOTH.shape, dtype=np.uint8)
    path = written(tmp_path / f"a.{suffix}", noise)
    content = path.read_bytes()
    for length in range(0, len(content) * 9 // 10, max(1, len(content) // 25)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"a\.{suffix} (is damaged|cannot be read)"):
            read_picture(path)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it finds
@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "tif", "webp"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = written(tmp_path / f"a.{suffix}", SMOOTH)
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(min(len(content), 300))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path, (8, 8), short_side=9)
        except EenetError as error:
            assert "\n" not in str(error)


# --- one size ---------------------------------------------------------------------------------------------------------


def test_images_by_hand(tmp_path: Path) -> None:
    wide = written(tmp_path / "a.png", np.arange(10, dtype=np.uint8).repeat(4).reshape(10, 4).T)
    assert read_image(wide, (4, 4), short_side=4, channels=1).tolist() == [[[3, 4, 5, 6]] * 4]
    assert read_image(wide, (2, 4), short_side=4).tolist() == [[[3, 4, 5, 6]] * 2] * 3
    assert read_image(wide, (4, 10), channels=1).tolist() == [[[*range(10)]] * 4]
    assert read_image(wide, (1, 5)).shape == (3, 1, 5)


def test_a_line_is_not_blown_up(tmp_path: Path) -> None:
    line = written(tmp_path / "a.png", np.zeros((1, 60_000), np.uint8))
    with pytest.raises(DataError, match=r"a\.png has 1 x 60000 pixels: with a short side of 256"):
        read_image(line, (224, 224), short_side=256)
    assert read_image(line, (8, 8)).shape == (3, 8, 8)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_are_searched_and_hidden_files_passed_over(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "deep/er/c.tif", "d.gif"]
    hidden = [".e.png", "._a.png", ".ipynb_checkpoints/a.png", "deep/.f/a.png", "__MACOSX/deep/a.png", "@eaDir/a.jpg"]
    for name in [*names, *hidden, "Thumbs.db"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert images_in(tmp_path) == [[tmp_path / name for name in ("a.png", "b.JPG", "d.gif", "deep/er/c.tif")]]


def test_what_is_left_out_is_said_with_numbers_of_every_kind(tmp_path: Path) -> None:
    notes = ["notes.txt", ".DS_Store"]
    for folder, names in (
        ("a", ["1.png", "2.HEIC", "3.heic", "raw", *notes]),
        ("b", ["1.png", "4.heic", "._1.png"]),
        ("", ["stray.png", "stray.JPG", "README.md", *notes]),
    ):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(exist_ok=True)
            (tmp_path / folder / name).touch()
    (tmp_path / "b" / "more").symlink_to(tmp_path / "a", target_is_directory=True)
    with pytest.warns(UserWarning) as said:
        found = images_in(tmp_path / "a", tmp_path / "b", root=tmp_path)
    assert [[path.name for path in paths] for paths in found] == [["1.png"], ["1.png"]]
    (warning,) = said
    kinds = ("3 .heic", "1 without a suffix", "1 linked folders", "2 .txt", "1 .md", "3 hidden")
    for fact in (f"data folder {tmp_path} ", *kinds, "2 images outside the folders of classes"):
        assert fact in str(warning.message)


def test_bad_files_are_found_by_their_headers_and_named_together(tmp_path: Path) -> None:
    good = [written(tmp_path / f"{k}.png", np.zeros((4, 4), np.uint8)) for k in range(20)]
    check_each([(check_picture, path) for path in good])
    deep = written(tmp_path / "deep.png", np.zeros((4, 4), np.uint16))
    line = written(tmp_path / "line.png", np.zeros((1, 60_000), np.uint8))
    (tmp_path / "cut.png").write_bytes(b"no image")
    paths = [*good[:9], deep, tmp_path / "cut.png", *good[9:], line]
    with pytest.raises(DataError, match=r"deep\.png has pixels of mode I.*2 others .*cut\.png, .*line\.png\.$"):
        check_each([(partial(check_picture, short_side=256), path) for path in paths])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(DataError, match=r"has no images: files \.bmp .* were expected, found a\.heic"):
        images_in(tmp_path)
    with pytest.raises(DataError, match="none cannot be read: No such file"):
        images_in(tmp_path / "none")
