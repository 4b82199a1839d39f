"""Classes of the published segmentations, in the order of their stored numbers, and which class an id of the official files is.

A mapping {id: class} lists every id that may occur; 255 stands for "not labelled". Ids that are not listed are refused.
"""

UNLABELLED = 255

# Gupta, Arbelaez and Malik, CVPR 2013.
NYU_40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "blinds",
    "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor-mat", "clothes", "ceiling", "books", "refridgerator",
    "television", "paper", "towel", "shower-curtain", "box", "whiteboard", "person", "night-stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip

# Couprie et al. 2013, in the form of Eigen and Fergus 2015.
NYU_13 = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)

# The number, from 1, among the 13 of each of the 40.
NYU_40_TO_13 = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5, 7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)  # fmt: skip

CITYSCAPES_19 = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_7 = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")

NUM_CITYSCAPES_IDS = 34  # a licence plate, -1, is not drawn
_TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# The first id of each category; all below the first are void.
_CATEGORY_STARTS = (7, 11, 17, 21, 23, 24, 26)

TASKONOMY_17 = (
    "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase",
)  # fmt: skip


def list_plain_ids(num_classes: int, *, first: int = 0, unlabelled: int) -> dict[int, int]:
    """The class of every id where the ids of the classes follow each other, and of the id that means "not labelled"."""
    return {first + number: number for number in range(num_classes)} | {unlabelled: UNLABELLED}


def list_cityscapes_ids(num_classes: int) -> dict[int, int]:
    """The class of every id of `labelIds`: one of the 19 that are trained, or its category (7); all else is not labelled."""
    classes = dict.fromkeys(range(NUM_CITYSCAPES_IDS), UNLABELLED)
    if num_classes == len(CITYSCAPES_19):
        return classes | {label: number for number, label in enumerate(_TRAINED_IDS)}
    for category, start in enumerate(_CATEGORY_STARTS):
        # A later category takes over from its first id on.
        classes |= dict.fromkeys(range(start, NUM_CITYSCAPES_IDS), category)
    return classes
