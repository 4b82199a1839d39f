import pytest

from distbranch.errors import UserError
from distbranch.registry import Registry


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    registry: Registry[int] = Registry("kind of affinity")
    registry.register("agreement")(1)
    registry.register("phi")(2)

    assert registry["phi"] == 2
    with pytest.raises(
        UserError, match=r"no kind of affinity 'agrement'. The nearest are agreement;"
    ):
        registry["agrement"]


def test_a_name_is_taken_once() -> None:
    registry: Registry[int] = Registry("optimiser")
    registry.register("sgd")(1)
    with pytest.raises(UserError, match="There is a optimiser 'sgd' already"):
        registry.register("sgd")(2)
