import pytest

from distbranch.errors import UserError
from distbranch.registry import Registry


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    registry: Registry[int] = Registry("sort of tea")
    registry.register("assam")(1)
    registry.register("mint")(2)

    assert registry["mint"] == 2
    with pytest.raises(UserError, match=r"no sort of tea 'asam'. The nearest are assam;"):
        registry["asam"]


def test_a_name_is_taken_once_whichever_registry_of_such_entries_has_it() -> None:
    registry: Registry[int] = Registry("way of brewing")
    other: Registry[str] = Registry("way of brewing")
    registry.register("cold")(1)
    for one in (registry, other):
        with pytest.raises(UserError, match="There is a way of brewing 'cold' already"):
            one.register("cold")(2)
