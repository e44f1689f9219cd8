import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clips_jax.data.images import (
    MAX_PIXELS,
    BadImage,
    Picture,
    crop_on_grid,
    decode_resized_crop,
    decode_squashed,
    sample_crop,
)

WHOLE = {"area": (1.0, 1.0), "ratio": (1.0, 1.0)}


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth(width, height, seed=0):
    """uint8 (height, width, 3): a blurred random picture."""
    coarse = rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def psnr(one, other):
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def png_header(width, height):
    """A valid PNG signature and header that announce a size, and the beginning of no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 10) + b"IDAT"


def test_png_at_its_own_size_is_exact():
    pixels = rng().integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(decode_resized_crop(encoded(pixels), 24, rng(), **WHOLE), pixels)
    assert np.array_equal(decode_squashed(encoded(pixels), 24), pixels)


def test_same_rng_same_crop():
    data = encoded(smooth(90, 70))
    crops = [decode_resized_crop(data, 16, rng(seed), (0.3, 0.9), (0.7, 1.4)) for seed in (1, 1, 2)]
    assert crops[0].shape == (16, 16, 3) and crops[0].dtype == np.uint8
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [20, 50, 100, 300])
def test_squash_is_pillows_bilinear(kind, size):
    data = encoded(smooth(200, 120), kind)
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(decode_squashed(data, size).astype(int) - np.asarray(expected, int)).max() <= 1


def photograph(width, height):
    """uint8 (height, width, 3): light whose amplitudes fall as those of photographs, colours that change slowly."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).clip(1 / width)
    noise = np.fft.irfft2(np.fft.rfft2(rng().normal(size=(height, width))) / frequency**1.2, (height, width))
    return (smooth(width, height) / 3 + 85 + 30 * (noise / noise.std())[..., None]).clip(0, 255).astype(np.uint8)


# Crops of about 360 px: from 6 x the result (decoded at 1/4) down to 1.03 x (decoded at full size).
@pytest.mark.parametrize("size", [60, 84, 112, 160, 224, 300, 350])
def test_scaled_decoding_is_close_to_a_full_decode(size):
    data = encoded(photograph(510, 400), "JPEG", quality=90)
    for seed in range(3):
        crop = decode_resized_crop(data, size, rng(seed), (0.6, 0.7), (0.99, 1.01))
        wanted = sample_crop(510, 400, rng(seed), (0.6, 0.7), (0.99, 1.01))
        scale, (left, top, width, height) = crop_on_grid(wanted, size, (1, 2, 4, 8))
        full = Image.open(io.BytesIO(data)).convert("RGB")
        box = (scale * left, scale * top, scale * (left + width), scale * (top + height))
        assert psnr(crop, full.resize((size, size), Image.Resampling.BILINEAR, box=box)) > 43


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 300), st.integers(0, 2**32))
def test_a_crop_on_the_grid_has_pixels_to_spare(width, height, size, seed):
    crop = sample_crop(width, height, rng(seed), (0.08, 1.0), (0.75, 1.3333))
    scale, (left, top, columns, rows) = crop_on_grid(crop, size, (1, 2, 4, 8))
    assert scale == 1 or min(columns, rows) >= int(1.5 * size)
    assert scale == 8 or min(crop[2:]) < 1.5 * size * 2 * scale  # not larger than needed
    assert left + columns <= -(-width // scale) and top + rows <= -(-height // scale)
    for place, original in zip((left, top, columns, rows), crop, strict=True):
        assert 0 <= original - scale * place < scale


@pytest.mark.parametrize("size", [(3000, 2000), (5000, 9), (9, 5000)])
def test_large_and_thin_pictures(size):
    data = encoded(smooth(*size), "JPEG")
    assert psnr(decode_resized_crop(data, 24, rng(), (0.9, 1.0), (0.001, 1000)), decode_squashed(data, 24)) > 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_fine_patterns_do_not_alias(kind):
    rows, columns = np.mgrid[:400, :400]
    stripes = (127.5 + 127.5 * np.sin(columns * 2.9) * np.sin(rows * 2.7)).astype(np.uint8)
    data = encoded(np.repeat(stripes[..., None], 3, axis=2), kind)
    crop = decode_resized_crop(data, 84, rng(), **WHOLE)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((84, 84), Image.Resampling.BILINEAR)
    assert psnr(crop, full) > 35
    assert np.ptp(crop) < 40  # all frequencies are above what 84 pixels hold; what is left is grey


def test_upsampling_works():
    assert decode_resized_crop(encoded(smooth(9, 5), "JPEG"), 40, rng(), (0.3, 1.0), (0.75, 1.33)).shape == (40, 40, 3)
    assert decode_resized_crop(encoded(smooth(1, 1)), 8, rng(), (0.3, 1.0), (0.75, 1.33)).shape == (8, 8, 3)


def test_alpha_is_composited_on_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0], pixels[:4, :, 3] = 255, 255  # red above, transparent below
    for data in (encoded(pixels), encoded(pixels, "WEBP", lossless=True)):
        result = decode_squashed(data, 8)
        assert (result[:4] == (255, 0, 0)).all() and (result[4:] == 255).all()


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    result = decode_squashed(encoded(image, transparency=0), 4)
    assert (result[0, 0] == 255).all() and (result[1:] == (40, 50, 60)).all()


@pytest.mark.parametrize(
    "mode, value, expected", [("L", 77, 77), ("1", 1, 255), ("I;16", 200 << 8, 200), ("LA", (77, 255), 77)]
)
def test_grey_modes(mode, value, expected):
    assert (decode_squashed(encoded(Image.new(mode, (5, 5), value)), 5) == expected).all()


def test_grey_and_cmyk_jpeg():
    assert np.abs(decode_squashed(encoded(Image.new("L", (16, 16), 99), "JPEG"), 16).astype(int) - 99).max() <= 1
    cmyk = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decode_squashed(cmyk, 16).astype(int) - (255, 0, 0)).max() <= 12


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(decode_squashed(data, 6).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = (255, 0, 0)
    pixels[16:, 32:] = (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    turns = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }
    upright = np.asarray(Picture(data).decode())
    assert upright.shape == turns[orientation].shape
    assert psnr(upright, turns[orientation]) > 25
    picture = Picture(data)
    assert (picture.height, picture.width) == upright.shape[:2]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of corrupt EXIF data
# Orientation 6 as cameras write it in either byte order, in more words than needed, beside others; and what is damaged:
# Pillow says what is to be made of it.
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "entries",
    [
        [(0x0112, 3, 1, 6)],
        [(0x010E, 3, 1, 3), (0x0112, 3, 1, 6), (0x0132, 3, 1, 8)],
        [(0x0112, 4, 1, 6)],
        [(0x0112, 3, 1, 9)],
        [(0x0112, 3, 2, 6)],
        [(0x0100, 3, 1, 6)],
        [],
    ],
)
@pytest.mark.parametrize("damage", ["", "cut", "far"])
def test_orientation_in_the_header_is_as_pillow_reads_it(order, entries, damage):
    fields = [struct.pack(f"{order}HHI", *entry[:3]) for entry in entries]
    values = [struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *((v, 0) if kind == 3 else (v,)))
              for _, kind, _, v in entries]  # fmt: skip
    table = b"".join(map(bytes.__add__, fields, values)) + bytes(4)
    start = 10_000 if damage == "far" else 8
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", start, len(entries)) + table
    exif = b"Exif\0\0" + (tiff[:-9] if damage == "cut" else tiff)
    data = encoded(smooth(40, 30), "JPEG", exif=exif)
    try:
        orientation = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    except Exception:
        with pytest.raises(BadImage):
            Picture(data)
        return
    picture = Picture(data)
    assert (picture.width, picture.height) == ((30, 40) if orientation in (5, 6, 7, 8) else (40, 30))


def test_truncated_files_are_bad():
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encoded(rng().integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
        for part in (0, 2, 10, len(data) // 2, len(data) - len(data) // 10):
            with pytest.raises(BadImage):
                decode_squashed(data[:part], 16)
            with pytest.raises(BadImage):
                decode_resized_crop(data[:part], 16, rng(), **WHOLE)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"hello", b"<svg/>", b"\x00" * 1000, png_header(0, 5)])
def test_what_is_no_picture_is_bad(data):
    with pytest.raises(BadImage):
        decode_squashed(data, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_header():
    side = int(MAX_PIXELS**0.5) + 1
    jpeg = bytearray(encoded(smooth(16, 16), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    for width, height in ((65000, 65000), (side, side)):
        jpeg[start : start + 4] = struct.pack(">HH", height, width)
        for data in (bytes(jpeg), png_header(width, height)):
            with pytest.raises(BadImage, match="pixels"):
                decode_squashed(data, 16)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_bad_image(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
    content = bytearray(encoded(smooth(20, 20), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_resized_crop(bytes(content), 8, rng(), (0.5, 1.0), (0.75, 1.33)).shape == (8, 8, 3)
    except BadImage:
        pass


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2**32))
def test_crop_lies_within_the_picture(width, height, seed):
    left, top, crop_width, crop_height = sample_crop(width, height, rng(seed), (0.08, 1.0), (0.75, 1.3333))
    assert crop_width >= 1 and crop_height >= 1
    assert 0 <= left <= width - crop_width and 0 <= top <= height - crop_height


def test_crop_statistics():
    generator = rng(0)
    crops = np.array([sample_crop(1000, 1000, generator, (0.1, 0.5), (0.8, 1.25)) for _ in range(4000)])
    shares = crops[:, 2] * crops[:, 3] / 1000**2
    ratios = crops[:, 2] / crops[:, 3]
    assert 0.099 < shares.min() and shares.max() < 0.501
    assert 0.79 < ratios.min() and ratios.max() < 1.26
    for values in ((shares - 0.1) / 0.4, (np.log(ratios) - np.log(0.8)) / (2 * np.log(1.25))):
        counts = np.histogram(values.clip(0, 1), 10, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    for start, length in ((0, 2), (1, 3)):
        place = crops[:, start] / (1000 - crops[:, length])
        assert abs(place.mean() - 0.5) < 0.02 and place.min() < 0.01 and place.max() > 0.99


@pytest.mark.parametrize("width, height, expected", [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13))])
def test_extreme_shapes_take_the_central_crop(width, height, expected):
    assert sample_crop(width, height, rng(), (0.9, 1.0), (0.75, 1.3333)) == expected
