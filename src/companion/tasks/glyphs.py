"""The embedded data set: distorted characters of many scripts, from a font that matplotlib ships.

A class is a character, a group its alphabet: a Unicode script, split into capitals and small
letters, or a block of symbols. Of look-alikes, such as the Latin, Greek and Cyrillic A, the first
one stays. Everything is drawn from a seed; nothing is downloaded.
"""

import hashlib
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from companion.checks import at_least
from companion.streams import torch_stream

SIDE = 28
_FONT = "DejaVuSans.ttf"
_INK = 20  # the longer side of a character, in pixels of the image
_FINE = 2  # master drawings have this many times the resolution
_ALIKE = 0.9  # cosine of two blurred drawings from which on they count as one character
_LEAST = 14  # characters of an alphabet
_CATEGORIES = "LSN"  # letters, symbols, numbers
_SCRIPTS = (  # how the Unicode names of an alphabet begin
    "LATIN CAPITAL", "LATIN SMALL", "GREEK CAPITAL", "GREEK SMALL", "CYRILLIC CAPITAL",
    "CYRILLIC SMALL", "ARMENIAN CAPITAL", "ARMENIAN SMALL", "GEORGIAN CAPITAL", "GEORGIAN",
    "HEBREW", "ARABIC", "CANADIAN", "LAO", "NKO", "TIFINAGH", "OGHAM", "OLD ITALIC", "BRAILLE")
_BLOCKS = {  # first and last code point of blocks of symbols
    "letter-like symbols": (0x2100, 0x214F), "arrows": (0x2190, 0x21FF),
    "operators": (0x2200, 0x22FF), "technical symbols": (0x2300, 0x23FF),
    "box drawings": (0x2500, 0x257F), "shapes": (0x25A0, 0x25FF),
    "miscellaneous symbols": (0x2600, 0x26FF), "dingbats": (0x2700, 0x27BF),
    "more operators": (0x2A00, 0x2AFF)}


class Characters(NamedTuple):
    """Master drawings [class, side, side] in [0, 1], and name and alphabet [class] of each."""

    drawings: torch.Tensor
    names: tuple[str, ...]
    alphabet: NDArray[np.int64]
    alphabets: tuple[str, ...]


def _alphabet(code: int) -> str | None:
    """The alphabet of a code point; None for one that is not used."""
    character = chr(code)
    if unicodedata.category(character)[0] not in _CATEGORIES:
        return None
    name = unicodedata.name(character, "")
    script = next((script for script in _SCRIPTS if name.startswith(script)), None)
    block = next((block for block, (first, last) in _BLOCKS.items() if first <= code <= last), None)
    return script.lower() if script else block


def _master(character: str, font: object) -> NDArray[np.float32] | None:
    """A character scaled to the height or width of all, in the middle; None where nothing shows."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)  # type: ignore[attr-defined]
    width, height = round(right - left), round(bottom - top)
    if min(width, height) <= 0:
        return None
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)  # type: ignore[arg-type]
    scale = _FINE * _INK / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    whole = Image.new("L", (_FINE * SIDE, _FINE * SIDE))
    whole.paste(small, ((whole.width - small.width) // 2, (whole.height - small.height) // 2))
    return np.asarray(whole, dtype=np.float32) / np.float32(255)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """``images`` [n, side, side], smoothed over about a stroke's width."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    return F.conv2d(images[:, None], torch.outer(kernel, kernel)[None, None] / 16, padding=1)[:, 0]


def _font() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FONT


@lru_cache(maxsize=1)
def version() -> str:
    """A hash of what the drawings depend on, but for the seed: this module, the font, who names the
    characters and draws them, and the kind of the processor, which rounds a few pixels in a million
    to another grey."""
    import PIL

    drawn_by = (unicodedata.unidata_version, PIL.__version__, torch.__version__,
                torch.backends.cpu.get_cpu_capability())
    return hashlib.sha256(Path(__file__).read_bytes() + _font().read_bytes()
                          + repr(drawn_by).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def characters() -> Characters:
    """All characters that the font contains, without look-alikes, in alphabets of 14 or more."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    path = str(_font())
    font = ImageFont.truetype(path, 2 * _FINE * _INK)
    entries = [(group, unicodedata.name(chr(code)), drawing)
               for code in sorted(FT2Font(path).get_charmap()) if (group := _alphabet(code))
               and (drawing := _master(chr(code), font)) is not None]
    order = [*map(str.lower, _SCRIPTS), *_BLOCKS]
    entries.sort(key=lambda entry: order.index(entry[0]))
    drawings = torch.from_numpy(np.stack([drawing for *_, drawing in entries]))
    kept = _distinct(drawings)
    sizes = Counter(entries[i][0] for i in kept)
    alphabets = [group for group in order if sizes[group] >= _LEAST]
    kept = [i for i in kept if entries[i][0] in alphabets]
    numbers = np.array([alphabets.index(entries[i][0]) for i in kept])
    return Characters(drawings[kept], tuple(entries[i][1] for i in kept), numbers, tuple(alphabets))


def _distinct(drawings: torch.Tensor) -> list[int]:
    """The drawings that look like none before them: cosines of small, blurred ones."""
    flat = F.normalize(_blurred(F.avg_pool2d(drawings[:, None], _FINE)[:, 0]).flatten(1), dim=1)
    alike = (flat @ flat.T >= _ALIKE).numpy()
    kept: list[int] = []
    for i in range(len(flat)):
        if not alike[i, kept].any():
            kept.append(i)
    return kept


def draw(samples: int = 20, *, seed: int = 0) -> NDArray[np.uint8]:
    """``samples`` distorted drawings of every character: [class, sample, 28, 28], ink 255; each
    with a rotation (up to 15 degrees), scale (0.8 to 1.1), shear (up to 0.2), shift (up to 2
    pixels), stroke width, and smooth random displacement (standard deviation 0.6 pixels) of its
    own. ValueError: samples below 1, or a seed that is not whole and >= 0."""
    at_least("samples", samples, 1, "one drawing a character is the least", whole=True)
    masters, rng = characters().drawings, torch_stream(seed, "glyphs")
    made = [_distorted(masters, rng) for _ in range(samples)]
    return np.asarray(torch.stack(made, dim=1).numpy())


def _uniform(rng: torch.Generator, count: int, least: float, most: float) -> torch.Tensor:
    return least + (most - least) * torch.rand(count, generator=rng)


def _distorted(masters: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One sample of every character, [class, 28, 28]."""
    count = len(masters)
    angle, scale = _uniform(rng, count, -0.26, 0.26), 1 / _uniform(rng, count, 0.8, 1.1)
    shear = _uniform(rng, count, -0.2, 0.2)
    shift = 4 / SIDE * (torch.rand(count, 2, generator=rng) - 0.5) * 2
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, shear * cos - sin, shift[:, 0]], 1),
            torch.stack([sin, shear * sin + cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 1, SIDE, SIDE], align_corners=False)
    coarse = torch.randn(count, 2, 5, 5, generator=rng) * 0.6 * 2 / SIDE
    bend = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    image = F.grid_sample(_blurred(masters)[:, None], grid + bend.movedim(1, -1),
                          align_corners=False)[:, 0]
    edge = _uniform(rng, count, 0.15, 0.5)[:, None, None]  # a lower edge makes thicker strokes
    return ((image - edge) / 0.25 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
