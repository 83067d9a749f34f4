"""The embedded data set: what it contains, that it is really drawn, and that a seed fixes it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from companion.tasks import glyphs


@pytest.fixture(scope="module")
def characters() -> glyphs.Characters:
    return glyphs.characters()


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return glyphs.draw(4)


def test_there_are_enough_of_them(characters: glyphs.Characters) -> None:
    assert len(characters.names) >= 1000
    assert len(set(characters.names)) == len(characters.names) == len(characters.drawings)
    sizes = np.bincount(characters.alphabet, minlength=len(characters.alphabets))
    assert len(sizes) >= 20
    assert sizes.min() >= 14


def test_every_character_is_in_the_font(characters: glyphs.Characters) -> None:
    """The box that the font draws for a character it does not have is among none of them."""
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 80
    )
    missing = glyphs._master("\U000f0000", font)
    assert missing is not None
    gap = (characters.drawings - torch.from_numpy(missing)).abs().mean((1, 2))
    assert gap.min() > 0.02
    assert (characters.drawings.amax((1, 2)) > 0.5).all()


def test_look_alikes_are_one_character(characters: glyphs.Characters) -> None:
    names = set(characters.names)
    assert "LATIN CAPITAL LETTER A" in names
    assert not names & {"GREEK CAPITAL LETTER ALPHA", "CYRILLIC CAPITAL LETTER A"}
    small = F.avg_pool2d(characters.drawings[:, None], 2)[:, 0]
    flat = F.normalize(glyphs._blurred(small).flatten(1), dim=1)
    alike = flat @ flat.T
    alike.fill_diagonal_(0)
    assert alike.max() < 0.9


def test_samples_differ_and_classes_differ_more(drawn: np.ndarray) -> None:
    assert drawn.shape[1:] == (4, glyphs.SIDE, glyphs.SIDE)
    assert drawn.dtype == np.uint8
    ink = drawn.mean((2, 3))
    assert (ink > 1).mean() > 0.995
    x = torch.from_numpy(drawn[:300, :2]).float().flatten(2)
    x = F.normalize(x, dim=2)
    own = (x[:, 0] * x[:, 1]).sum(1)
    others = x[:, 0] @ x[:, 1].T
    assert own.max() < 0.999
    assert own.mean() > others.mean() + 0.1


def test_a_seed_fixes_them(drawn: np.ndarray) -> None:
    assert np.array_equal(glyphs.draw(2), drawn[:, :2])
    assert not np.array_equal(glyphs.draw(1, seed=1), drawn[:, :1])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        glyphs.draw(0)
    with pytest.raises(ValueError, match="seed must be"):
        glyphs.draw(1, seed=-1)
