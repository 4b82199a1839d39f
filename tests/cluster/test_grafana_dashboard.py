"""The dashboard asks for the gauges that runs have, for all of them, and by labels that they have."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from distbranch.engine.gauges import GAUGES

FILE = Path(__file__).resolve().parents[2] / "cluster" / "grafana-dashboard.json"
SELECTOR = re.compile(r"\{__name__=~\"(?P<name>[^\"]+)\"(?P<labels>[^}]*)\}")
BOARD = json.loads(FILE.read_text())
PANELS = BOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES = [
    variable["definition"]
    for variable in BOARD["templating"]["list"]
    if variable["type"] == "query"
]
COMMON = {"run", "sweep"}


def asked(text: str) -> set[str]:
    """The gauges that a text asks for, from a file and from Ray alike."""
    found = set()
    for selector in SELECTOR.finditer(text):
        named = [
            name
            for name in GAUGES
            if all(re.fullmatch(selector["name"], full) for full in (name, f"ray_{name}"))
        ]
        assert len(named) == 1, selector[0]
        found.add(named[0])
    return found


def test_the_dashboard_asks_for_every_gauge_and_for_no_other() -> None:
    assert set().union(*map(asked, EXPRESSIONS)) == set(GAUGES)
    # Nothing is asked for but by a selector that was looked at.
    for text in (*EXPRESSIONS, *QUERIES):
        assert "distbranch_" not in SELECTOR.sub("", text)
        assert asked(text)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_names_labels_that_its_gauges_have(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        known = COMMON.union(*(GAUGES[name][1] for name in asked(target["expr"])))
        used = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        for grouped in re.findall(r"by \(([^)]*)\)", target["expr"]):
            used += grouped.split(", ")
        for selector in SELECTOR.finditer(target["expr"]):
            used += re.findall(r"(\w+)=", selector["labels"])
        assert set(used) <= known
        assert {"run", "sweep"} <= set(used)
        assert target["expr"].count("(") == target["expr"].count(")")
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_lie_beside_each_other_and_have_numbers_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_every_source_is_the_one_that_is_chosen_at_the_top() -> None:
    sources = re.findall(r'"uid": "(\$[^"]*)"', FILE.read_text())
    assert set(sources) == {"${datasource}"}
    assert len(sources) == len(PANELS) + len(EXPRESSIONS) + len(QUERIES)
