"""Maps of dense tasks as pictures for people, and what their colours mean."""

from dataclasses import dataclass

import numpy as np

from distbranch.data.label_maps import get_dense_kind, resize_codes
from distbranch.kinds.digits import write_digits
from distbranch.kinds.kind import Array
from distbranch.kinds.label_counts import Counts
from distbranch.kinds.map_counts import PERCENTS, read_quantiles
from distbranch.kinds.normals import DIRECTIONS, encode_normals
from distbranch.tasks import Task

SWATCH, STRIP = 16, 120  # pixels: height of both, and width of one colour and of a range
STRIPES = 8  # pixels from one to the next
# From the least value to the largest: dark blue to yellow, each lighter than the one before.
VALUE_COLOURS = np.array(
    [
        (68, 1, 84),
        (70, 50, 127),
        (54, 92, 141),
        (39, 127, 142),
        (31, 161, 135),
        (74, 194, 109),
        (159, 218, 58),
        (253, 231, 37),
    ]
)
GREY = np.array([(0, 0, 0), (255, 255, 255)])
DIGITS = 3


@dataclass(frozen=True)
class LegendEntry:
    """What a colour, or a range of them, means. swatch: uint8 [SWATCH, W, 3]."""

    swatch: Array
    text: str


@dataclass(frozen=True)
class MapPainter:
    """Draws the maps of one task in the same colours for every sample of a split. counts: those of its labels there."""

    task: Task
    counts: Counts

    def draw(self, codes: Array | None, size: tuple[int, int]) -> Array:
        """A picture uint8 [H, W, 3] of (height, width) pixels; striped where not labelled, as all of it is without codes."""
        stripes = np.indices(size).sum(axis=0) % STRIPES < STRIPES // 4
        picture = np.where(stripes, 150, 225)[..., None].repeat(3, axis=2).astype(np.uint8)
        if codes is None:
            return picture
        kind = get_dense_kind(self.task)
        resized = resize_codes(codes, size)
        drawn = kind.draw_codes(self.task, resized)
        if drawn.ndim == 2:
            drawn = self._colour(drawn)
        labelled = kind.find_labelled(resized)
        picture[labelled] = drawn[labelled]
        return picture

    def describe(self, codes: Array | None) -> str:
        """The name of the task, and how much is labelled if that is not all."""
        share = 0.0
        kind = get_dense_kind(self.task)
        if codes is not None:
            share = float(kind.find_labelled(codes).mean())
        return self.task.name if share == 1 else kind.describe_label(self.task, share)

    def make_legend(self) -> list[LegendEntry]:
        """Of classes one entry each, of values one, of directions those that a surface which is seen may face."""
        kind = get_dense_kind(self.task)
        palette = kind.get_palette()
        if palette is not None:
            codes = range(len(self.task.classes))
            swatches = [np.tile(palette[code], (SWATCH, SWATCH, 1)) for code in codes]
            return list(map(LegendEntry, swatches, self.task.classes))
        if kind.channels > 1:
            return make_legend_of_directions()
        least, largest = self._range
        strip = self._colour(np.tile(np.linspace(least, largest, STRIP), (SWATCH, 1)))
        unit = kind.get_unit(self.task)
        ends = f"{write_digits(least, DIGITS)} to {write_digits(largest, DIGITS)} {unit}".rstrip()
        return [LegendEntry(strip, ends)]

    @property
    def _range(self) -> tuple[float, float]:
        """Where the colours begin and end: at 1 and 99 % of the split's pixels; strengths go from 0 to 1."""
        quantiles = dict(zip(PERCENTS, read_quantiles(self.counts), strict=False))
        return quantiles.get(1, 0.0), quantiles.get(99, 1.0)

    def _colour(self, values: Array) -> Array:
        least, largest = self._range
        colours = VALUE_COLOURS if read_quantiles(self.counts) else GREY
        # Where all is equally far there is one colour.
        shares = (np.nan_to_num(values) - least) / (largest - least or 1)
        places = np.linspace(0, 1, len(colours))
        channels = [np.interp(shares, places, channel) for channel in colours.T]
        return np.stack(channels, axis=-1).round().astype(np.uint8)


def make_legend_of_directions() -> list[LegendEntry]:
    """The colours of surfaces that face right, left, up, down and forward, to the camera: signs and axes are seen by them."""
    axes = np.eye(3)
    vectors = np.stack([axes, -axes], axis=1).reshape(len(DIRECTIONS), 3)
    entries = []
    for name, vector in zip(DIRECTIONS, vectors, strict=True):
        colour = encode_normals(vector, np.array(True))
        entries.append(LegendEntry(np.tile(colour, (SWATCH, SWATCH, 1)), name))
    return entries[:-1]  # what faces away is not seen
