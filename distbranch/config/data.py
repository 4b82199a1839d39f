"""The settings of data: which they are, how they are read, which come more often and how they are changed."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distbranch.config.network import (
    Count,
    CountOrZero,
    Place,
    Positive,
    PositiveOrZero,
    Section,
)
from distbranch.config.paths import expand_places

# 32 is what the five pooling layers of VGG-16 leave one position of.
ImageSide = Annotated[int, Field(ge=32)]


Scale = Annotated[float, Field(ge=0.1, le=10)]
Part = Annotated[float, Field(gt=0, le=1)]
Power = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Section):
    """The packed data set (or several, trained together) and how it is read."""

    path: str | tuple[str, ...] | None = None
    """Packed data set: a folder or a URL (http, s3, gs); a list of them for joint training."""
    proportions: tuple[Count, ...] = Field((), json_schema_extra={"range": "[>= 1, ...]"})
    """With a list in `path`: how many samples come from each in turn; by their sizes if empty."""
    pack: dict[str, Any] | None = None
    """How to pack `path` if it is absent: `source` and its options, as for `distbranch data pack`."""
    image_size: tuple[ImageSide, ImageSide] | None = None
    """[height, width] in pixels, at least 32x32; that of the data set if empty."""
    flip: bool = False
    """Mirror training images left to right at random."""
    shift: int = Field(0, ge=0, le=64)
    """Shift training images at random by up to this many pixels."""
    scale: tuple[Scale, Scale] | None = None
    """Enlarge or shrink training images at random by a factor from [least, largest], such as [0.5, 1.5]. The size of batches stays:
    that of `crop`, else of the images, with padding of the mean colour, which no label has."""
    crop: tuple[ImageSide, ImageSide] | None = None
    """[height, width] in pixels of the part of each training image that is seen, at random (smaller images are padded); evaluations
    see whole images."""
    depth_follows_scale: bool = True
    """With `scale`: divide depth by the factor (multiply disparity), as if the camera were so much nearer."""
    decoder: Literal["simplejpeg", "pil"] = "simplejpeg"
    """JPEG decoder (their pixels differ slightly)."""
    workers: int | None = Field(None, ge=0, le=64)
    """Prefetching processes per rank; 0: one thread. Empty: 0 on CPUs; on GPUs the cores of a rank but one, at most 8."""
    prefetch: int = Field(4, ge=1, le=64)
    """Batches prepared ahead (per prefetching process)."""
    shuffle_window: Count = 8
    """How many shards have their samples mixed with each other."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What to do with a sample that cannot be read."""
    max_bad_samples: CountOrZero = 100
    """With `skip`: with more of them training fails, and so does an evaluation."""
    cache_directory: Place | None = None
    """Where shards of a URL are kept; a folder of the user if empty."""
    cache_gib: Positive = 20.0
    """Largest size of that cache in GiB."""
    # Of ImageNet, as the public VGG-16 and ResNet weights were trained with.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of values in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Per channel, of values in 0..1."""
    balance: dict[str, Power] = Field({}, json_schema_extra={"range": "{TASK: 0..1}"})
    """Show samples of rare classes more often, those of frequent ones less, in an epoch of the same length. 0: as they are, 1: all
    classes of the task equally often; between, in proportion to count^(1 - power). Of several tasks each gets its frequencies as far as
    they can be had at once; unlabelled samples keep their share."""
    augment: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Change training images by operations drawn at random (extra `augment`)."""
    crop_area: tuple[Part, Part] | None = None
    """Show a part of each training image, of [least, most] of its area at random such as [0.3, 1], enlarged to the size of the whole."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Change brightness, contrast and saturation of training images at random by up to this share (extra `augment`)."""
    mixup: PositiveOrZero = 0.0
    """Average each training image with another, with shares from Beta(mixup, mixup); 0: not at all. The loss of a label is multiplied
    by the share of its image."""
    cutmix: PositiveOrZero = 0.0
    """Put a rectangle of another image into each training image, with shares from Beta(cutmix, cutmix); with `mixup` too, each half of
    the time."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The data sets: none, one or several."""
        if isinstance(self.path, str):
            return (self.path,)
        return self.path or ()

    @field_validator("path", mode="before")
    @classmethod
    def _is_one_place_or_several(cls, path: Any) -> Any:
        if path is None:
            return None
        places = path if isinstance(path, list | tuple) else [path]
        if not places or not all(isinstance(place, str) and place for place in places):
            raise ValueError(f"should be a folder or a URL, or a list of them, found {path!r}")
        # A list of one is no joint training, and the same run as without the brackets.
        return expand_places(places[0] if len(places) == 1 else path)

    @field_validator("scale", "crop_area")
    @classmethod
    def _has_its_ends_in_order(cls, scale: tuple[float, float] | None) -> Any:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError(f"should be [least, largest], found {list(scale)}")
        return scale

    @model_validator(mode="after")
    def _is_cut_in_one_way(self) -> Self:
        given = "data.scale" if self.scale is not None else "data.crop"
        if self.crop_area is not None and (self.scale is not None or self.crop is not None):
            raise ValueError(
                f"data.crop_area and {given} are two ways to show a part of an image, found both; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_data_sets(self) -> Self:
        # One number for one data set says nothing, so at least two are asked for.
        if self.proportions and len(self.proportions) != max(2, len(self.paths)):
            raise ValueError(
                "data.proportions needs a number for every data set of a list in data.path, "
                f"found {len(self.proportions)} for {len(self.paths)}"
            )
        if self.pack is not None and len(self.paths) > 1:
            raise ValueError(
                f"data.pack makes one data set, and data.path names {len(self.paths)}; pack them beforehand with "
                "`distbranch data pack` and leave data.pack out"
            )
        return self
