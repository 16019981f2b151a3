"""Decoding of image and mask files."""

import io

import numpy as np
import pytest
from PIL import Image

from tljax.data.sources.images import read_image, read_mask
from tljax.errors import UserError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_gray_and_color_images_are_read_unchanged(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    Image.fromarray(COLOR).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "a.png")[..., 0] == GRAY).all()
    assert (read_image(tmp_path / "b.png") == COLOR).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    deep = np.array([[0, 257, 32896, 65535, 300]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 128, 255, 1]]
    Image.fromarray(deep).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[..., 0].tolist() == [[0, 1, 128, 255, 1]]
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 65535\n" + deep.astype(">u2").tobytes())
    assert read_image(tmp_path / "a.pgm")[..., 0].tolist() == [[0, 1, 128, 255, 1]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_blended_with_white(tmp_path, mode):
    value = (200, 100, 0) if mode == "RGBA" else (200,)
    image = Image.new(mode, (3, 1), (*value, 255))
    image.putpixel((1, 0), (*value, 0))
    image.putpixel((2, 0), (*value, 51))  # a fifth
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (1, 3, len(value))
    expected = [value, (255,) * len(value), tuple(round(0.2 * v + 0.8 * 255) for v in value)]
    assert np.abs(pixels[0].astype(int) - expected).max() <= 1


def test_palettes_are_applied_in_images_and_indices_in_masks(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 2]]
    image.info["transparency"] = 1
    image.save(tmp_path / "b.png", transparency=1)
    assert read_image(tmp_path / "b.png").tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert read_mask(tmp_path / "b.png").tolist() == [[0, 1, 2]]


def test_cmyk_orientation_and_animation(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = read_image(tmp_path / "a.jpg")[0, 0]
    assert red[0] > 240
    assert red[1:].max() < 15
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.fromarray(COLOR).save(tmp_path / "b.png", exif=exif)
    assert (read_image(tmp_path / "b.png") == COLOR).all()
    frames = [Image.new("L", (4, 4), v) for v in (10, 200)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "c.gif") == 10).all()


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif"])
def test_errors_name_truncated_and_missing_images(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)
    )
    for share in (0.5, 0.02):
        path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        with pytest.raises(UserError, match=rf"a\.{ending} cannot be read as an image: .*[^.]\.$"):
            read_image(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(path)
    path.unlink()
    with pytest.raises(UserError, match=rf"There is no image .*a\.{ending}"):
        read_image(path)


def test_float_images_and_invalid_masks_are_rejected(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="floating-point"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(COLOR).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png cannot be a mask: it has channels RGB"):
        read_mask(tmp_path / "b.png")
    Image.fromarray(np.array([[3, 256]], np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c\.png cannot be a mask: it has values 3\.\.256"):
        read_mask(tmp_path / "c.png")
    Image.fromarray(GRAY).save(tmp_path / "d.jpg")
    with pytest.raises(UserError, match="JPEG changes"):
        read_mask(tmp_path / "d.jpg")
