"""Every kind of picture that the web holds, one by one: kept, made plain, or refused for the right reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clips_jax.data.images import Picture
from clips_jax.data.prepare.pictures import PictureOptions, Refused, image_format, plain
from tests.data.make_tars import encoded, pixels

OPTIONS = PictureOptions()
IMAGE = Image.fromarray(pixels())


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def reason(data: bytes, options: PictureOptions = OPTIONS) -> str:
    with pytest.raises(Refused) as error:
        plain(data, "jpg", options)
    return error.value.reason


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Picture(data).decode(), np.int32)


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (encoded("JPEG"), "jpg"),
        (encoded("JPEG", progressive=True), "jpeg"),
        (encoded("JPEG", image=IMAGE.convert("L")), "jpg"),
        (encoded("JPEG", subsampling="4:4:4", exif=exif(1)), "jpg"),
        (encoded("PNG"), "png"),
        (encoded("PNG", image=IMAGE.convert("L")), "png"),
        (encoded("JPEG") + b"what cameras leave behind", "jpg"),
    ],
)
def test_plain_pictures_keep_their_bytes(data, extension):
    assert plain(data, extension, OPTIONS) == (data, [])


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def sixteen_bit() -> bytes:
    grey = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    return encoded("PNG", image=Image.fromarray(grey))


def deep_png(depth: int, kind: int, bytes_per_row: int) -> bytes:
    """A PNG of 60 x 40 pixels that Pillow cannot write: any depth and kind of colour, random pixels."""
    rows = np.random.default_rng(0).integers(0, 256, (40, 1 + bytes_per_row), dtype=np.uint8)
    rows[:, 0] = 0  # no filter
    header, data = struct.pack(">IIBBBBB", 60, 40, depth, kind, 0, 0, 0), zlib.compress(rows.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_alpha() -> Image.Image:
    image = IMAGE.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))))
    return image


LOSSLESS = {
    "palette": (encoded("PNG", image=IMAGE.quantize(32)), "png", ["palette"]),
    "palette with alpha": (encoded("PNG", image=IMAGE.quantize(32), transparency=3), "png", ["palette", "alpha"]),
    "alpha": (encoded("PNG", image=with_alpha()), "png", ["alpha"]),
    "grey alpha": (encoded("PNG", image=with_alpha().convert("LA")), "png", ["alpha"]),
    "16 bit": (sixteen_bit(), "png", ["sixteen_bit"]),
    "16 bit, RGB": (deep_png(16, 2, 360), "png", ["sixteen_bit"]),
    "16 bit, RGBA": (deep_png(16, 6, 480), "png", ["sixteen_bit", "alpha"]),
    "4 bit grey": (deep_png(4, 0, 30), "png", ["mode_4"]),
    "1 bit": (encoded("PNG", image=IMAGE.convert("1")), "png", ["mode_1"]),
    "gif": (encoded("GIF", image=IMAGE.quantize(16)), "gif", ["gif", "palette"]),
    "animation": (
        encoded("GIF", image=IMAGE.quantize(16), save_all=True, append_images=[IMAGE.rotate(90).quantize(16)]),
        "gif",
        ["gif", "palette", "animation"],
    ),
    "lossless webp": (encoded("WEBP", lossless=True), "webp", ["webp"]),
    "bmp": (encoded("BMP"), "bmp", ["bmp"]),
    "tiff, cmyk": (encoded("TIFF", image=IMAGE.convert("CMYK")), "tif", ["tiff", "cmyk"]),
    "turned png": (encoded("PNG", exif=exif(6)), "png", ["exif_turned"]),
    "png called jpg": (encoded("PNG", image=with_alpha()), "jpg", ["wrong_extension", "alpha"]),
}
LOSSY = {
    "cmyk": (encoded("JPEG", image=IMAGE.convert("CMYK"), quality=95), "jpg", ["cmyk"]),
    "webp": (encoded("WEBP", quality=80), "webp", ["webp"]),
    "webp called jpg": (encoded("WEBP", quality=80), "jpg", ["wrong_extension", "webp"]),
    **{f"turned {way}": (encoded("JPEG", exif=exif(way), quality=95), "jpg", ["exif_turned"]) for way in range(2, 9)},
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_pictures_become_plain_pngs_with_the_same_pixels(name):
    data, extension, notes = LOSSLESS[name]
    stored, found = plain(data, extension, OPTIONS)
    assert found == notes and image_format(stored) == "PNG"
    np.testing.assert_array_equal(decoded(stored), decoded(data))  # as training reads the one and the other
    with Image.open(io.BytesIO(stored)) as image:  # and as any decoder reads it
        assert image.mode == "RGB" and not image.getexif()
        np.testing.assert_array_equal(np.asarray(image, np.int32), decoded(data))
    assert plain(stored, "png", OPTIONS) == (stored, [])


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_pictures_become_plain_jpegs_that_look_the_same(name):
    data, extension, notes = LOSSY[name]
    stored, found = plain(data, extension, OPTIONS)
    assert found == notes and image_format(stored) == "JPEG"
    wanted, got = decoded(data), decoded(stored)
    assert got.shape == wanted.shape == ((60, 40, 3) if name[-1] in "5678" else (40, 60, 3))
    assert 10 * np.log10(255**2 / np.mean((wanted - got) ** 2)) > 40  # PSNR, dB
    assert plain(stored, "jpg", OPTIONS) == (stored, [])


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that announces any size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG whose header says another size than its data has."""
    data = bytearray(encoded("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def test_refused():
    jpeg, png = encoded("JPEG"), encoded("PNG")
    assert reason(b"") == "empty_picture"
    assert reason(b"<html>404</html>") == reason(bytes(1000)) == "not_a_picture"
    assert reason(png_header(60_000, 60_000)) == reason(jpeg_header(65_000, 65_000)) == "too_many_pixels"
    assert reason(jpeg, PictureOptions(max_pixels=60 * 40 - 1)) == "too_many_pixels"
    assert reason(jpeg, PictureOptions(max_bytes=len(jpeg) - 1)) == "picture_file_too_large"
    for picture_format in ("JPEG", "PNG", "GIF"):
        assert reason(encoded(picture_format, image=Image.new("RGB", (1, 1)))) == "too_small"
    for end in (3, 30, 300, len(jpeg) - 20):
        assert reason(jpeg[:end]) == "damaged_picture"
    for end in (20, 60, len(png) // 2):
        assert reason(png[:end]) == "damaged_picture"
    assert reason(encoded("WEBP")[:200]) == reason(encoded("GIF")[:200]) == "damaged_picture"
    assert reason(png_header(100, 100)) == "damaged_picture"
    with pytest.raises(Refused, match="no header to be read"):  # and no address in memory
        plain(png_header(0, 0), "png", OPTIONS)


def test_damaged_bytes_are_refused_or_decode_in_training():
    """Whatever the damage, what is taken can be read later, and nothing else is raised."""
    rng = np.random.default_rng(0)
    taken = 0
    for data in (encoded("JPEG"), encoded("PNG"), encoded("WEBP"), encoded("GIF"), encoded("TIFF")):
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(256)
            try:
                stored, _ = plain(bytes(damaged), "jpg", OPTIONS)
            except Refused:
                continue
            Picture(stored).decode()
            taken += 1
    assert 0 < taken < 300


@pytest.mark.parametrize(("width", "height"), [(800, 600), (601, 1200), (161, 160), (160, 300), (100, 90)])
def test_reduced(width, height):
    options = PictureOptions(shorter_side=160)
    image = Image.fromarray(pixels(height, width))
    data = encoded("JPEG", image=image, quality=95)
    stored, notes = plain(data, "jpg", options)
    if min(width, height) <= 160:  # never enlarged
        assert (stored, notes) == (data, [])
        return
    small = Picture(stored)
    assert notes == ["reduced"] and min(small.width, small.height) == 160
    assert abs(small.width / small.height - width / height) < 0.02
    wanted = np.asarray(image.resize((small.width, small.height), Image.Resampling.LANCZOS), np.float64)
    assert 10 * np.log10(255**2 / np.mean((decoded(stored) - wanted) ** 2)) > 36
    assert len(stored) < len(data)


def test_reducing_does_not_alias():
    """Lines one pixel apart become an even grey; picking pixels would keep them black or white."""
    lines = np.zeros((1280, 1280, 3), np.uint8)
    lines[:, ::2] = 255
    stored, _ = plain(encoded("PNG", image=Image.fromarray(lines)), "png", PictureOptions(shorter_side=160))
    assert np.abs(decoded(stored) - 128).max() < 12


def test_huge_pictures_that_are_no_jpegs_are_reduced():
    data = encoded("PNG", image=Image.new("RGB", (8_000, 2_048), "red"))
    stored, notes = plain(data, "png", OPTIONS)
    assert notes == ["huge"] and (Picture(stored).width, Picture(stored).height) == (4_000, 1_024)
