"""Recipes and their flags: sections that a call replaces, recipes that are read."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from launch import main as cli


class _SectionParser(flags.ArgumentParser):
    """Parser of --config: loads the config file and replaces some of its sections.

    Args:
        parser: Parser of a config file.
        sections: (key, call) of each section to replace.
    """

    def __init__(self, parser: flags.ArgumentParser, sections: Sequence[tuple]):
        self._parser = parser
        self._sections = sections

    def parse(self, path):
        from research.experiment.config_keys import replace_section

        config = self._parser.parse(path)
        for key, text in self._sections:
            replace_section(config, key, text)
        return config


def parse_section_flags(
    argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Extracts flags that replace a section of the config, such as --config.loss=CALL.

    The flags of ml_collections only set single values, and check --config.loss.x
    against the loaded config. Sections are therefore replaced when it is loaded.

    Args:
        argv: Arguments of the command line.
        flag_values: The flags, of which --config gets another parser.

    Returns:
        The other arguments.
    """
    remaining, sections = [], []
    arguments = iter(argv)
    for argument in arguments:
        # "--config.key=CALL", or "--config.key CALL" as two arguments.
        match = re.match(r"--?config\.([\w.]+)(?:=(.*))?$", argument, re.DOTALL)
        if not match or not _is_section(match[1]):
            remaining.append(argument)
            continue
        text = next(arguments, "") if match[2] is None else match[2]
        sections.append((match[1], text))
    # absl has not parsed any flags yet: give --config another parser.
    if sections:
        flag = flag_values["config"]
        flag.parser = _SectionParser(flag.parser, sections)
    return remaining


def _is_section(key: str) -> bool:
    # Imported here, with JAX: a mistake in another flag is reported at once.
    from research.experiment.config_keys import is_section

    return is_section(key)


def load_recipe(recipe: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that launch.train makes of --config=RECIPE and further flags.

    Args:
        recipe: The recipe and its variant, such as configs/x.py:tiny.
        overrides: Flags such as --config.steps=10.

    Raises:
        ValueError: There is no such recipe, or a flag does not fit it.
    """
    arguments = ["", f"--config={recipe}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=arguments
    )
    try:
        values(parse_section_flags(arguments, values))
    except cli.FLAG_MISTAKES as error:
        raise ValueError(cli.format_error(error)) from None
    return values.config


def describe_recipe(argv: Sequence[str]) -> str:
    """The description in the file that --config names; empty if there is none."""
    for argument in argv:
        match = re.match(r"--?config=(.*?\.py)(:|$)", argument)
        if match and Path(match[1]).is_file():
            doc = ast.get_docstring(ast.parse(Path(match[1]).read_text()))
            return f"{match[1]}: {doc or ''}"
    return ""
