"""From attributes to a drawing: the parts of a face in the order in which they are drawn."""

from distbranch.data.sources.rendered_faces import features, scene
from distbranch.data.sources.rendered_faces.canvas import Canvas
from distbranch.data.sources.rendered_faces.person import Person


def draw(canvas: Canvas, person: Person) -> None:
    """The whole face, from back to front."""
    for part in (
        scene.draw_background,
        scene.draw_back_hair,
        scene.draw_body,
        scene.draw_head,
        scene.draw_sideburns,
        scene.draw_top,
        features.draw_brows,
        features.draw_eyes,
        features.draw_nose,
        features.draw_mouth,
        features.draw_ornaments,
    ):
        part(canvas, person)
