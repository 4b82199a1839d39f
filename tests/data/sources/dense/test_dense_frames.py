"""What the sources of dense labels have in common: drawn splits, and sizes."""

import numpy as np
import pytest

from distbranch.data.label_maps import resize_codes
from distbranch.data.sources.dense.adashare_nyuv2 import AdaShareNyuV2Options
from distbranch.data.sources.dense.frames import name_block


def test_val_is_a_share_of_train_by_whole_blocks_and_follows_the_seed() -> None:
    stems = [f"{number:04d}" for number in range(2000)]
    drawn = {}
    for seed in (0, 1):
        options = AdaShareNyuV2Options(root="r", val=0.2, seed=seed)
        drawn[seed] = [options.draw_train_or_val(name_block(stem)) for stem in stems]
        blocks = [set(drawn[seed][first : first + 10]) for first in range(0, 2000, 10)]
        assert all(len(block) == 1 for block in blocks)
        assert drawn[seed].count("val") == pytest.approx(400, abs=120)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("new", [(3, 4), (7, 10), (21, 30), (14, 5)])
def test_a_resized_label_is_that_of_the_pixel_in_which_the_new_centre_lies(
    new: tuple[int, int],
) -> None:
    codes = np.arange(7 * 10).reshape(7, 10)
    resized = resize_codes(codes, new)
    assert resized.shape == new
    for row in range(new[0]):
        for column in range(new[1]):
            old_row = int((row + 0.5) * 7 / new[0])
            old_column = int((column + 0.5) * 10 / new[1])
            assert resized[row, column] == codes[old_row, old_column]
