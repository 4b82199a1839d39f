"""Cartoon faces drawn from a seed: 40 attributes named as in CelebA, with a planted structure that is known."""

from typing import Literal

from pydantic import Field, model_validator

from distbranch.data.sources.source import Source, SourceOptions


class RenderedFacesOptions(SourceOptions):
    """Faces drawn by the program itself, so nothing has to be downloaded."""

    source: Literal["rendered-faces"] = "rendered-faces"
    samples: int = Field(6000, ge=1, description="Number of faces to train on.")
    val: int = Field(500, ge=0, description="Number of faces of the val split.")
    test: int = Field(500, ge=0, description="Number of faces of the test split.")
    image_size: tuple[int, int] | None = Field((64, 64), description="HxW in pixels; the faces are square.")
    seed: int = Field(0, description="Another seed draws other faces.")
    nuisance: float = Field(0.8, ge=0, le=1, description="Share of the faces on which one region is hard to see.")

    @model_validator(mode="after")
    def _check_square(self) -> "RenderedFacesOptions":
        if self.image_size is None or self.image_size[0] != self.image_size[1]:
            raise ValueError("image_size should be a square for rendered faces, for instance 64x64")
        return self

    def open(self) -> Source:
        """Nothing is drawn until the samples are read."""
        from distbranch.data.sources import rendered_faces

        num_samples = {"train": self.samples, "val": self.val, "test": self.test}
        side = (self.image_size or (64, 64))[0]
        return Source(
            tasks=rendered_faces.tasks(),
            samples=rendered_faces.samples(num_samples, image_size=side, seed=self.seed, nuisance=self.nuisance),
            description=self.describe(),
            num_samples=sum(num_samples.values()),
            groups=rendered_faces.TASK_GROUPS,
        )
