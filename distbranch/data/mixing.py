"""Mixup and CutMix: every training image is mixed with its neighbour in the stream, labels in the same proportion.

Positions 2k and 2k + 1 of the stream are neighbours, so pairs are the same on any number of ranks, and a rank reads an image more
only where its share of a batch ends within a pair. The stream is in a random order, so neighbours are as good as any two.
"""

from dataclasses import dataclass

import numpy as np

from distbranch.data.images import Pixels

STEPS = 256  # shares are whole 256ths: products fit into 16 bits, and all machines mix alike


@dataclass(frozen=True)
class Mixing:
    """How images are mixed.

    mixup: an image and its neighbour are averaged with shares from Beta(mixup, mixup) (Zhang et al. 2018); 0: not at all.
    cutmix: a rectangle is the neighbour's, its share from Beta(cutmix, cutmix) (Yun et al. 2019); with both each comes half of
    the time.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def mix_images(self, own: Pixels, other: Pixels, position: int) -> tuple[Pixels, float]:
        """The image [H, W, 3] at a position of the stream mixed with its neighbour's, and the share in 0..1 that is its own."""
        from scipy.special import betaincinv

        # The 4 at the end: nothing else is drawn from such a seed sequence.
        raw = np.random.Philox(np.random.SeedSequence((self.seed, position, 0, 4))).random_raw(4)
        which, drawn, down, right = (raw / 2.0**64).tolist()
        cuts = self.cutmix > 0 and (which < 0.5 or not self.mixup)
        alpha = self.cutmix if cuts else self.mixup
        steps = round(float(betaincinv(alpha, alpha, drawn)) * STEPS)
        if not cuts:
            sums = own * np.uint16(steps) + other * np.uint16(STEPS - steps)
            return ((sums + STEPS // 2) // STEPS).astype(np.uint8), steps / STEPS

        height, width = (round(side * (1 - steps / STEPS) ** 0.5) for side in own.shape[:2])
        top = int(down * (own.shape[0] - height + 1))
        left = int(right * (own.shape[1] - width + 1))
        box = (slice(top, top + height), slice(left, left + width))
        mixed = own.copy()
        mixed[box] = other[box]
        return mixed, 1 - height * width / (own.shape[0] * own.shape[1])


def find_neighbour(position: int) -> int:
    """The other position of a pair."""
    return position ^ 1
