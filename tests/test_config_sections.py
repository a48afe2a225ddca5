"""Sections: the function's signature is the schema."""

import pytest

from research.config_sections import bind, build, section


def scaled(
    x, *, by: float = 2.0, plus: float | None = None, names: tuple[str, ...] = ()
):
    return x * by + (plus or 0.0)


def needy(x, *, path: str):
    return x, path


def drawn(*, seed: int = 0):
    return seed


TABLE = {"scaled": scaled, "needy": needy, "drawn": drawn}


def test_a_section_lists_every_argument_and_builds_the_call():
    config = section(TABLE, "scaled", by=3.0)
    assert config.to_dict() == {"name": "scaled", "by": 3.0, "plus": None, "names": ()}
    assert build(TABLE, config, 2.0) == 6.0
    config.plus = 1.0
    assert bind(TABLE, config)(2.0) == 7.0


def test_a_none_can_be_overridden_by_its_type_alone():
    config = section(TABLE, "scaled")
    with pytest.raises(TypeError):
        config.plus = "much"


def test_what_the_function_does_not_take_is_refused():
    with pytest.raises(ValueError, match="no argument times; it has by, plus"):
        section(TABLE, "scaled", times=3)
    with pytest.raises(
        ValueError, match="unknown name 'scale'; known: drawn, needy, scaled"
    ):
        section(TABLE, "scale")
    with pytest.raises(ValueError, match="needy needs a value for path"):
        section(TABLE, "needy")
    with pytest.raises(ValueError, match="scaled has no argument times"):
        build(TABLE, {"name": "scaled", "times": 3}, 1.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "scaled", "by": "2"}, "scaled's by is '2'; it takes a number"),
        ({"name": "scaled", "by": float("nan")}, "by is nan; it takes a number"),
        ({"name": "scaled", "names": "ab"}, r"names is 'ab'; it takes tuple\[str"),
        ({"name": "needy", "path": None}, "path is None; it takes quoted text"),
        ({"name": "drawn", "seed": -1}, "seed is -1; it should be in 0 "),
        ({"name": "drawn", "seed": 2**32}, "seed is 4294967296; it should be"),
        ({"name": "drawn", "seed": 1.0}, "seed is 1.0; it takes a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bind(TABLE, arguments)
