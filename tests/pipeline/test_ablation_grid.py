import click
import pytest

from pipeline.ablation_grid import SeedList, combinations, parse_factor, parse_factors
from pipeline.errors import ConfigError


def values(text):
    return [(value.label, value.text) for value in parse_factor(text).values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("encoder.steps=1,2", [("1", "1"), ("2", "2")]),
        ("a=[1, 2],[3]", [("[1, 2]", "[1, 2]"), ("[3]", "[3]")]),
        ('a="x,y",z', [('"x,y"', '"x,y"'), ("z", "z")]),
        ("a=default,0.5", [("default", None), ("0.5", "0.5")]),
        (
            "encoder=both@default,features only@{weight_mask: 0, steps: 3}",
            [("both", None), ("features only", "{weight_mask: 0, steps: 3}")],
        ),
        ("a=b=c", [("b=c", "b=c")]),
    ],
)
def test_values(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["encoder.steps"], "expected KEY=V1,V2"),
        (["=1"], "expected KEY=V1,V2"),
        (["a=1,,2"], "a value is empty"),
        (["a=1,1"], "value '1' is given twice"),
        (["a=x@1,x@2"], "name 'x' is given twice"),
        (["a=1", "a=2"], "--over a: given twice"),
        (["a={"], "no YAML"),
        (["run.seed=1,2"], "say which seeds with --seeds"),
        (["run.dir=a,b"], "below the run.dir"),
        (["cache.path=a"], "caches are shared"),
    ],
)
def test_what_is_refused(texts, message):
    with pytest.raises(ConfigError, match=message):
        parse_factors(texts)


def test_every_combination_the_last_key_fastest():
    grid = combinations(parse_factors(["a=1,default", "b.c=x,y"]))
    assert [each.labels for each in grid] == [
        {"a": "1", "b.c": "x"},
        {"a": "1", "b.c": "y"},
        {"a": "default", "b.c": "x"},
        {"a": "default", "b.c": "y"},
    ]
    assert grid[0].overrides == ("a=1", "b.c=x")
    assert grid[2].overrides == ("b.c=x",)
    assert grid[0].title == "a=1, b.c=x"
    assert len({each.folder for each in grid}) == 4
    assert all("/" not in each.folder and " " not in each.folder for each in grid)


def test_nothing_varied_is_one_combination():
    (only,) = combinations(())
    assert (only.labels, only.overrides, only.title) == ({}, (), "the config")


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 3), ("0,1,2", (0, 1, 2)), ("7,", (7,)), (2, 2)]
)
def test_seeds(text, expected):
    assert SeedList().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "a", "1,1", "0", "-1", "1,,2"])
def test_seeds_that_are_none(text):
    with pytest.raises(click.BadParameter):
        SeedList().convert(text, None, None)
