"""Variables and homes in the places that a configuration names."""

from pathlib import Path
from typing import Any

import pytest

from distbranch.config import load_config
from distbranch.config.paths import expand_places
from distbranch.config.sweep import sweep_of
from distbranch.data.sources import parse_options
from distbranch.errors import UsageError

BASE: dict[str, Any] = {"data": {"path": "data"}}
PLACES = {
    "run.directory": {},
    "data.path": {},
    "data.cache_directory": {},
    "method.pretrained": {"method.init": "somp"},
    "method.groups": {"method.name": "fixed"},
    "adashare.policy": {"method.name": "adashare", "model.backbone": "resnet18"},
}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("place", "expanded"),
    [
        ("$SCRATCH/runs", "/scratch/me/runs"),
        ("${SCRATCH}2/runs", "/scratch/me2/runs"),
        ("/data/$USER/$USER", "/data/me/me"),
        ("~/runs", "{home}/runs"),
        ("~", "{home}"),
        ("s3://bucket/$USER/runs", "s3://bucket/me/runs"),
        ("http://host/a?sum=1$", "http://host/a?sum=1$"),
        ("cost-5$/runs", "cost-5$/runs"),
        ("a~b/~", "a~b/~"),
        ("runs", "runs"),
    ],
)
def test_variables_and_homes_are_replaced(tmp_path: Path, place: str, expanded: str) -> None:
    assert expand_places(place) == expanded.format(home=tmp_path)


@pytest.mark.parametrize("name", ["a $USER 'c'", "$UNSET", "x/${USER}/y"])
def test_a_folder_that_is_really_called_so_is_meant_wherever_its_path_is_read(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for place in (folder, folder / "runs"):
        config = load_config(BASE, {"run.directory": str(place)})
        assert config.run.directory == str(place)
        assert load_config(config.model_dump()) == config
    assert expand_places(f"{tmp_path}/$USER/runs") == f"{tmp_path}/me/runs"


@pytest.mark.parametrize("key", PLACES)
def test_every_place_of_a_run_is_expanded_in_files_and_overrides(key: str) -> None:
    config = load_config(BASE, {**PLACES[key], key: "$SCRATCH/x"})
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == "/scratch/me/x"
    assert load_config(config) == config


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize("place", ["$UNSET/x", "${UNSET}/x", "/x/$EMPTY", "~nobody-of-this-name/x"])
def test_a_variable_that_is_not_set_is_refused_with_its_name_and_key(key: str, place: str) -> None:
    with pytest.raises(UsageError) as told:
        load_config(BASE, {**PLACES[key], key: place})
    assert key in str(told.value)
    assert place in str(told.value)


def test_every_data_set_of_a_list_is_expanded() -> None:
    config = load_config(BASE, ["data.path=[$SCRATCH/a, '~/b', http://host/c]"])
    assert config.data.paths == ("/scratch/me/a", str(Path.home() / "b"), "http://host/c")


def test_other_texts_with_a_dollar_are_left_alone() -> None:
    groups = {"fc6": [["$UNSET", "~b"], ["c"]]}
    config = load_config(BASE, {"method.name": "fixed", "method.groups": groups})
    assert config.method.groups == groups


def test_the_files_that_are_packed_are_expanded() -> None:
    options = parse_options(
        {"source": "csv", "images": "$SCRATCH/images", "table": "~/t.csv", "image_column": "$UNSET"}
    )
    assert options.images == Path("/scratch/me/images")  # type: ignore[attr-defined]
    assert options.table == Path.home() / "t.csv"  # type: ignore[attr-defined]
    assert options.image_column == "$UNSET"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"--images: .*\$UNSET"):
        parse_options({"source": "csv", "images": "$UNSET/images", "table": "t.csv"})
    assert str(parse_options({"source": "celeba", "root": "$SCRATCH"}).root) == "/scratch/me"  # type: ignore[attr-defined]


def test_the_places_of_a_sweep_are_expanded(tmp_path: Path) -> None:
    values = {
        "base": "$SCRATCH/base.yaml",
        "variants": {"one": {"base": "~/one.yaml"}, "two": {}},
        "directory": "$SCRATCH/sweeps",
        "trial_directory": "~/trials",
        "name": "s",
        "seeds": [0],
    }
    sweep = sweep_of(values, folder=tmp_path, what="The sweep")
    assert (sweep.base, sweep.variants["one"]["base"]) == (
        "/scratch/me/base.yaml",
        str(tmp_path / "one.yaml"),
    )
    assert (sweep.path, sweep.trial_path) == (Path("/scratch/me/sweeps/s"), tmp_path / "trials")
    for key in ("base", "directory", "trial_directory"):
        with pytest.raises(UsageError, match=r"\$UNSET"):
            sweep_of({**values, key: "$UNSET/x"}, folder=tmp_path, what="The sweep")
