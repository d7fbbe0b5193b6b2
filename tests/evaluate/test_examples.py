"""Which items are shown, and how label maps are painted."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.session import ROOT
from evaluate.examples import overlay, palette
from evaluate.sets.kinds import IGNORED
from evaluate.sets.masks import evenly_spaced


@pytest.mark.parametrize(("items", "wanted"), [(0, 5), (1, 5), (5, 5), (100, 8), (7, 1)])
def test_evenly_spaced_gives_distinct_indices_in_range(items: int, wanted: int) -> None:
    chosen = evenly_spaced(items, wanted)
    assert len(chosen) == len(set(chosen)) == min(items, wanted)
    assert all(0 <= index < items for index in chosen)


def test_palette_colours_are_distinct_and_the_background_is_light() -> None:
    colors = palette(150, background=0)
    assert len({tuple(color) for color in colors.tolist()}) == 150
    assert colors[0].min() > 200


def test_overlay_shows_the_colour_of_the_class_and_black_where_ignored() -> None:
    image = Image.new("RGB", (4, 2), "white")
    colors = palette(3, None)
    labels = np.array([[0, 1, IGNORED, IGNORED], [0, 1, IGNORED, IGNORED]], np.int32)
    painted = np.asarray(overlay(image, labels, colors)).astype(int)
    assert np.abs(painted[0, 0] - (0.7 * colors[0] + 0.3 * 255)).max() <= 1
    assert painted[0, 2].max() < painted[0, 0].max()
    assert (painted[0, 2] == painted[1, 3]).all()


KILLED = """
import resource, signal, sys
from pathlib import Path
from PIL import Image
from evaluate.examples import _save

noise = Image.effect_noise((100, 100), 80)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
_save(Path(sys.argv[1]), noise, 100)
"""


def test_picture_of_a_process_that_dies_while_writing_is_not_there(tmp_path: Path) -> None:
    """The kernel kills it at byte 500; a torn picture would be taken for a finished one."""
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "right-0.jpg")], cwd=ROOT, check=False
    )
    assert died.returncode == -signal.SIGXFSZ
    assert not list(tmp_path.glob("*.jpg"))
