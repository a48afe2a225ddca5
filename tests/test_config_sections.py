"""Sections: the function's signature is the schema."""

import pytest

from research.config_sections import bind, build, section


def scaled(
    x, *, by: float = 2.0, plus: float | None = None, names: tuple[str, ...] = ()
):
    return x * by + (plus or 0.0)


def needy(x, *, path: str):
    return x, path


TABLE = {"scaled": scaled, "needy": needy}


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
    with pytest.raises(ValueError, match="unknown name 'scale'; known: needy, scaled"):
        section(TABLE, "scale")
    with pytest.raises(ValueError, match="needy needs a value for path"):
        section(TABLE, "needy")
    with pytest.raises(ValueError, match="scaled has no argument times"):
        build(TABLE, {"name": "scaled", "times": 3}, 1.0)
