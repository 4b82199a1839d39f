"""What a configuration chooses by name: the names that the program brings, and those that plug-ins add.

The names stand here and not in the registries alone, for a check should not load torch; a test says that they are the same.
"""

from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator

from distbranch.registry import find_near, list_registered

BUILT_IN = {
    "kind of affinity": ("agreement", "phi", "importance", "gradient-cosine", "look-ahead"),
    "method of decision": ("cost",),
    "backbone": ("vgg16", "vgg9", "resnet18", "resnet34", "resnet50"),
    "optimiser": ("sgd", "adam", "adamw"),
    "loss": (
        "binary:cross-entropy",
        "binary:focal",
        "binary:asymmetric",
        "categorical:cross-entropy",
        "categorical:focal",
        "categorical:asymmetric",
        "ordinal:cross-entropy",
        "number:smooth-l1",
        "number:squared-error",
        "segmentation:cross-entropy",
        "depth:absolute",
        "depth:log",
        "depth:berhu",
        "normals:cosine",
        "heat:absolute",
    ),
}


def check_name(name: str, *, what: str) -> str:
    """The name, if it is built in or registered.

    Raises:
        ValueError: it is neither; with the nearest names.
    """
    known = dict.fromkeys([*BUILT_IN[what], *list_registered(what)])
    if name not in known:
        raise ValueError(
            f"there is no {what} {name!r}; the nearest are {', '.join(find_near(name, known))}, and one of your own comes from a file "
            "named in `plugins`"
        )
    return name


def describe_names(what: str) -> dict[str, Any]:
    """The range of such a key in the help of the configuration."""
    return {"range": " | ".join(BUILT_IN[what])}


Affinity = Annotated[str, AfterValidator(partial(check_name, what="kind of affinity"))]
DecisionMethod = Annotated[str, AfterValidator(partial(check_name, what="method of decision"))]
Optimiser = Annotated[str, AfterValidator(partial(check_name, what="optimiser"))]
