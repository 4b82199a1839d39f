"""Several tags in a cell: seen and asked about, a binary task each where it was said; names with blanks are none."""

from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from table_labels import Labels

from distbranch.data.sources.label_text import find_separator, split_tags, tidy_text
from distbranch.errors import UserError

Learn = Callable[..., Labels]


PLANET = [
    "haze primary",
    "agriculture clear primary water",
    "clear primary",
    "clear primary road",
    "cloudy",
] * 3
CHEST = [
    "Cardiomegaly|Emphysema",
    "No Finding",
    "Hernia",
    "Hernia|Infiltration",
    "Cardiomegaly",
    "Emphysema|Hernia",
] * 3


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (CHEST, "|"),
        ([cell.replace("|", ";") for cell in CHEST], ";"),
        ([cell.replace("|", "; ") for cell in CHEST], ";"),
        ([cell.replace("|", ", ") for cell in CHEST], ","),
        (["a b", "b c", "c a", "b a", "a"] * 4, " "),
        (PLANET, " "),
        (["62 17 66", "17 62", "66 17", "62"] * 4, " "),
        (["a/b", "b/c", "c/a", "b"] * 4, "/"),
        (["['red', 'blue']", "['blue']", "['blue', 'green']", "['red', 'green']"] * 4, ","),
        (["a|b", "b|c", "a|c"] * 3, "|"),
    ],
)
def test_lists_of_tags_are_refused_with_what_to_type(
    learn: Learn, cells: list[str], separator: str
) -> None:
    for options in ({}, {"one_task_per_class": "labels"}):
        with pytest.raises(UserError, match="several tags in a cell") as refused:
            learn({"labels": cells}, **options)
        assert f"--tags labels --separator '{separator}'" in str(refused.value)
    found = learn({"labels": cells}, tags="labels", separator=separator)
    for number, cell in enumerate(cells):
        expected = {part.strip(" '") for part in cell.strip("[]").split(separator)}
        assert {tag for tag, marks in found.items() if marks[number] == 1} == expected
        assert all(marks[number] in (0, 1) for marks in found.values())
    with pytest.raises(UserError, match=r"'labels' is to hold tags, .* Give --separator"):
        learn({"labels": cells}, tags="labels")
    kept = learn({"labels": cells}, categorical="labels")
    assert kept == {"labels": [tidy_text(cell) for cell in cells]}


def test_an_image_whose_cell_is_empty_has_no_label_unless_that_means_no_tag(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"t": ["a b", "", "b", "NA", "[]"]}
    assert learn(columns, tags="t", separator="space") == {
        "a": [1, None, 0, None, 0],
        "b": [1, None, 1, None, 0],
    }
    assert "'t': its 1 empty cells stay unlabelled" in caplog.text
    caplog.clear()
    assert learn(columns, tags="t", separator=" ", blank="no") == {
        "a": [1, 0, 0, None, 0],
        "b": [1, 0, 1, None, 0],
    }
    assert "empty cells" not in caplog.text
    chest = learn({"t": CHEST}, tags="t", separator="|")
    assert chest["No Finding"][:3] == [0, 1, 0]
    assert chest["Hernia"][:3] == [0, 0, 1]


def test_a_tag_called_like_a_column_gets_the_name_of_its_own(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"t": ["hat shoe", "shoe", "hat"], "hat": ["1", "0", "1"]}
    found = learn(columns, tags="t", separator=" ")
    assert found == {"t_hat": [1, 0, 1], "shoe": [1, 1, 0], "hat": [1, 0, 1]}
    assert "There is a task 'hat' already, so the class 'hat' is called 't_hat'" in caplog.text
    assert set(learn(columns, tags="t", separator=" ", class_prefix="p-")) == {
        "p-hat",
        "p-shoe",
        "hat",
    }


def test_two_columns_of_tags_and_many_combinations_are_read(learn: Learn) -> None:
    names = [f"t{n:02d}" for n in range(12)]
    cells = [
        " ".join(name for bit, name in enumerate(names) if n >> bit & 1) for n in range(1, 1400)
    ]
    with pytest.raises(UserError, match="--tags t --separator ' '"):
        learn({"t": cells})
    found = learn(
        {"t": cells, "u": ["x;y", "y"] * 699 + ["x"]}, tags="t", separator=" ", ignore="u"
    )
    assert [found["t00"][n] for n in range(4)] == [1, 0, 1, 0]
    assert len(found) == 11  # 1399 has eleven bits


NAMES = {
    "shoes": [
        "Casual Shoes",
        "Sports Shoes",
        "Formal Shoes",
        "Flip Flops",
        "Track Pants",
        "Sandals",
        "Night suits",
    ],
    "colours": ["light blue", "dark blue", "light green", "dark green", "blue", "green", "red"],
    "goods": [
        f"{colour} {thing}"
        for colour in ("red", "blue", "green")
        for thing in ("shirt", "dress", "hat")
    ],
    "dogs": [
        "golden retriever",
        "labrador retriever",
        "poodle",
        "toy poodle",
        "standard poodle",
        "terrier",
        "toy terrier",
    ],
    "cities": ["New York", "New Orleans", "San Jose", "San Juan", "York", "Los Angeles"],
    "places": ["Austin, TX", "Dallas, TX", "Reno, NV", "Elko, NV", "Salem, OR"],
    "people": [
        f"{first} {last}" for first in ("Ann", "Ben", "Eve", "Tom") for last in ("Ito", "Lee", "Ng")
    ],
    "ages": ["0-3 years", "4-7 years", "8-12 years", "adult"],
    "tops": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Ankle boot"],
    "sizes": ["S/M", "L/XL", "one size"],
    "bodies": ["Perfume and Body Mist", "Body Wash", "Body Lotion", "Mist", "Necklace and Chains"],
    "foods": [
        "chocolate cake",
        "chocolate mousse",
        "cheese plate",
        "cheesecake",
        "hot dog",
        "hot and sour soup",
        "ice cream",
        "fried rice",
        "french fries",
        "french onion soup",
        "french toast",
        "lobster roll sandwich",
        "lobster bisque",
        "club sandwich",
        "crab cakes",
        "grilled cheese sandwich",
        "grilled salmon",
        "macaroni and cheese",
        "onion rings",
        "pulled pork sandwich",
        "pork chop",
        "spring rolls",
        "beef tartare",
        "tuna tartare",
        "bread pudding",
        "garlic bread",
        "carrot cake",
        "greek salad",
        "red velvet cake",
        "pizza",
        "miso soup",
        "frozen yogurt",
    ],
    "birds": [
        "Black footed Albatross",
        "Red winged Blackbird",
        "Yellow headed Blackbird",
        "Painted Bunting",
        "Gray Catbird",
        "Brandt Cormorant",
        "Red faced Cormorant",
        "American Crow",
        "Fish Crow",
        "Black billed Cuckoo",
        "Blue Jay",
        "Green Jay",
        "California Gull",
        "Yellow billed Cuckoo",
        "Western Gull",
        "Western Meadowlark",
        "Blue Grosbeak",
    ],
    "pets": [
        "american bulldog",
        "american pit bull terrier",
        "staffordshire bull terrier",
        "yorkshire terrier",
        "boxer",
        "english setter",
        "english cocker spaniel",
        "british shorthair",
        "egyptian mau",
        "maine coon",
        "basset hound",
    ],
    "cars": [
        f"{make} {year}"
        for make in ("BMW X5 SUV", "BMW M3 Coupe", "Audi A4 Sedan")
        for year in range(2007, 2012)
    ],
    "rooms": [
        "living room",
        "dining room",
        "bed room",
        "room",
        "shower room",
        "bath room",
        "kitchen",
        "dining hall",
    ],
    "grades": ["A+", "A", "A-", "B+", "B", "not sure"],
    "degrees": ["very good", "good", "bad", "very bad", "very very good"],
    "days": ["01/02/2020", "02/01/2020", "03/02/2020", "03/04/2021", "02/04/2021", "01/03/2021"],
    "decimals": ["1,5", "2,5", "1,2", "5,1", "2,1"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_with_blanks_are_no_tags(kind: str) -> None:
    assert find_separator(NAMES[kind]) is None


@pytest.mark.parametrize(
    ("folder", "column", "num_classes"),
    [("clothing", "category", 17), ("fps", "article_type", 50), ("fps", "brand", 309)],
)
def test_the_names_of_real_tables_are_no_tags(
    learn: Learn, shared_data: Path, folder: str, column: str, num_classes: int
) -> None:
    names = pandas.read_csv(shared_data / folder / "attributes.csv", usecols=[column], dtype=str)[
        column
    ].dropna()
    assert find_separator(names.unique()) is None
    if column != "brand":  # which has a number among its names
        assert len(learn({column: names}, one_task_per_class=column)) == num_classes
        assert set(learn({column: names})[column]) == set(names)


@pytest.mark.parametrize(
    ("cell", "separator", "tags"),
    [
        ("a b a", " ", "ab"),
        ("a, b", ",", "ab"),
        ("['a', \"b\"]", ",", "ab"),
        ("{a;b}", ";", "ab"),
        ("|a||b|", "|", "ab"),
        ("[]", ",", ""),
    ],
)
def test_a_cell_is_split_into_its_tags(cell: str, separator: str, tags: str) -> None:
    assert split_tags(cell, separator) == set(tags)
