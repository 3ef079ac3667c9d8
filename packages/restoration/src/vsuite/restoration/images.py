"""Picture files in: every format, grey to RGBA, 8 and 16 bit, with colour profile, EXIF and XMP; `writers` is the way out."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError
from vsuite.restoration.tags import ORIENTATION, STRUCTURE, Tags, orientation_of, read_tags, resized

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[Any]
"""(H, W, C), uint8 or uint16; C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha)."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
READ_ONLY = (".avif", ".jp2", ".j2k", ".ppm", ".pgm")  # suffixes of formats that are not written
_RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2")  # several of them would pass for a TIFF of their preview
UNREAD = (".heic", ".heif", ".jxl", *_RAW, ".exr", ".hdr", ".psd", ".tga")
MOST_PIXELS = 1 << 30  # more is refused: a few bytes of damage can claim any size
_XMP_SIDES = ((rb"(?:exif:PixelXDimension|tiff:ImageWidth)", "width"), (rb"(?:exif:PixelYDimension|tiff:ImageLength)", "height"))


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        tags: EXIF, and the descriptive tags of TIFF.
        icc: colour profile. xmp: packet. dpi: pixels an inch, across and down.
        text: key -> text, as PNG keeps it.
    """

    tags: Tags = field(default_factory=dict)
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)

    def resized(self, width: int, height: int) -> Metadata:
        """The same for a picture of other sides that lies upright."""
        xmp = re.sub(rb'(tiff:Orientation(?:="|>))\d+', rb"\g<1>1", self.xmp)
        for names, side in _XMP_SIDES:
            value = str(width if side == "width" else height).encode()
            xmp = re.sub(rb"(" + names + rb'(?:="|>))\d+', rb"\g<1>" + value, xmp)
        return replace(self, tags=resized(self.tags, width, height), xmp=xmp)


@dataclass(frozen=True)
class Picture:
    """A picture file in memory.

    Attributes:
        pixels: upright, whatever the camera noted.
        metadata: as read, for the sides and orientation of the file.
        note: what of the file could not be kept, for people; usually empty.
    """

    pixels: Pixels
    metadata: Metadata
    note: str = ""


def read_picture(path: str | Path) -> Picture:
    """Reads a still picture.

    Palettes and CMYK become RGB (CMYK through its own colour profile, if it has one). 16 bits stay 16 bits.

    Raises:
        InputError: for a file that is missing, empty, no picture, damaged, cut short or too large, for an animation or a TIFF of several
            pages, and for kinds of pixels that are neither 8 nor 16 bit.
    """
    with open_image(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # an MPO is a photograph with companions
            kind = "pages" if image.format == "TIFF" else "frames, an animation"
            raise InputError(f"{path}: holds {frames} {kind}; a still picture is expected")
        tags = _tags(Path(path), image)
        image.load()
        metadata = _metadata(image, tags)
        pixels, metadata, note = _pixels(Path(path), image, metadata)
        # Pillow and OpenCV turn TIFF as they decode it; what is left to do, Pillow knows.
        orientation = int(image.getexif().get(ORIENTATION, 1)) if image.format == "TIFF" else orientation_of(metadata.tags)
    return Picture(_upright(pixels, orientation), metadata, note)


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image]:
    """Pillow's image of a file; what goes wrong with the file inside the block becomes an `InputError`."""
    from PIL import Image, UnidentifiedImageError

    path, limit = Path(path), Image.MAX_IMAGE_PIXELS
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a picture is expected")
    if path.suffix.lower() in UNREAD and path.exists():
        raise InputError(f"{path}: {path.suffix[1:].upper()} is not read; convert it to PNG, JPEG or TIFF first")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty (0 bytes)")
        Image.MAX_IMAGE_PIXELS = None  # ours is larger: pictures to enlarge may be scans
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.init()
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:  # older Pillows lack AVIF
                width, height = image.size
                if min(image.size) < 1:
                    raise InputError(f"{path}: has no pixels ({width} x {height})")
                if width * height > MOST_PIXELS:
                    raise InputError(f"{path}: {width} x {height} is more than {MOST_PIXELS:,} pixels")
                yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is no picture, or damaged; known are PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF and JPEG 2000") from error
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into memory") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, Image.DecompressionBombError) as error:
        what = " ".join(str(error).split()) or type(error).__name__  # Pillow's plugins raise all of these for damaged files
        raise InputError(f"{path}: cannot be read as a picture: {what}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def warn_of_unread(folder: Path, files: Iterable[Path]) -> None:
    """Warns in one line of those files of a folder that are pictures of formats that are not read, which are otherwise passed over."""
    found = Counter(file.suffix.lower() for file in files if file.suffix.lower() in UNREAD)
    if not found:
        return
    kinds = ", ".join(f"{count} {suffix[1:].upper()}" for suffix, count in sorted(found.items()))
    what = "1 picture is" if found.total() == 1 else f"{found.total()} pictures are"
    line = f"{folder}: {what} left out, as the format is not read ({kinds}); convert to PNG, JPEG or TIFF first"
    warnings.warn(line, stacklevel=2)


def is_animated(path: str | Path) -> bool:
    """Whether a file is an animated GIF, WebP or PNG; False for what cannot be read."""
    try:
        with open_image(path) as image:
            return image.format in ("GIF", "WEBP", "PNG") and getattr(image, "n_frames", 1) > 1
    except InputError:
        return False


def is_transparent_still(path: str | Path) -> bool:
    """Whether a file is a still picture with alpha, by what its head says; False for what cannot be read."""
    try:
        with open_image(path) as image:
            return has_alpha(image) and getattr(image, "n_frames", 1) == 1
    except InputError:
        return False


def has_alpha(image: Image) -> bool:
    """Whether a Pillow image has an alpha channel, or a colour that stands for transparency."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def _tags(path: Path, image: Image) -> Tags:
    if image.format == "TIFF":
        import mmap

        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {tag: value for tag, value in read_tags(data).items() if tag not in STRUCTURE}
    return read_tags(image.info.get("exif", b""))


def _metadata(image: Image, tags: Tags) -> Metadata:
    info = image.info
    xmp = info.get("xmp", b"")
    text = getattr(image, "text", {}) if image.format == "PNG" else {}
    dpi = info.get("dpi")
    if image.format == "TIFF" and 282 not in image.tag_v2:  # type: ignore[attr-defined]
        dpi = None  # where a file says nothing, Pillow says 1
    if not (isinstance(dpi, tuple) and len(dpi) == 2 and all(0 < float(value) < 1e5 for value in dpi)):
        dpi = None
    return Metadata(
        tags=tags or read_tags(info.get("exif", b"")),  # of PNG, known only once all is read
        icc=info.get("icc_profile") or b"",
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=None if dpi is None else (float(dpi[0]), float(dpi[1])),
        text={str(key): str(value) for key, value in text.items() if key != "XML:com.adobe.xmp"},
    )


def _pixels(path: Path, image: Image, metadata: Metadata) -> tuple[Pixels, Metadata, str]:
    """Pixels as they lie in the file, what is kept beside them, and what is not."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None], metadata, ""
    depth = _depth(path, image)
    if depth == 16:
        return _read_deep(path, image), metadata, ""
    if image.mode in ("I", "F"):
        raise InputError(f"{path}: has {'32-bit' if image.mode == 'I' else 'floating-point'} pixels; 8 and 16 bit are read")
    note = f"its {depth} bits became 8" if depth > 8 else ""
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        image, note = _to_rgb(image, metadata.icc)
        metadata = replace(metadata, icc=b"")
    mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + ("A" if has_alpha(image) else "")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return np.atleast_3d(pixels), metadata, note


def _to_rgb(image: Image, icc: bytes) -> tuple[Image, str]:
    """sRGB through the picture's own profile, else by the plain formula."""
    from PIL import ImageCms

    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted, f"{image.mode} became sRGB by its colour profile"
        except ImageCms.PyCMSError:
            pass  # a damaged profile is as good as none
    return image.convert("RGB"), f"{image.mode} became RGB"


def _depth(path: Path, image: Image) -> int:
    """Bits of a sample of pictures in colour, which Pillow would cut to 8."""
    if image.format == "PNG":
        return _png_kind(path)[0]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]
    if image.format == "JPEG2000":
        head = _head(path)
        return 1 + (head[head.index(b"\xff\x4f\xff\x51") + 42] & 0x7F)
    if image.format == "AVIF":
        head = _head(path)
        flags = head[head.index(b"av1C") + 6]
        return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
    return 8


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 20)  # a colour profile may stand first


def _png_kind(path: Path) -> tuple[int, int]:
    """Bits a sample, and the colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24], header[25]


def _read_deep(path: Path, image: Image) -> Pixels:
    """16 bits a sample, in colour or with alpha."""
    import cv2

    if image.format == "TIFF" and image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        raise InputError(f"{path}: has 16-bit {image.mode} pixels; grey and RGB are read")
    try:
        found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        found = None
    if found is None or found.dtype != np.uint16:
        raise InputError(f"{path}: its 16-bit pixels cannot be read")
    pixels = np.atleast_3d(found)
    if pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]  # opencv's order is blue, green, red
    grey = image.format == "PNG" and _png_kind(path)[1] == 4  # opencv makes it RGBA
    return pixels[..., [0, 3]] if grey else pixels


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turned as the camera noted: 2 mirrored, 3 upside down, 4 both, 5 to 8 the same lying on a side."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
