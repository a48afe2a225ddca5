import inspect
import math

import pytest

from research.analysis.diagnostics.reports import REPORTS
from research.config_bounds import BOUND_OF
from research.config_sections import bind, check_type, parse_section
from research.data.pairs.walks import WALKS
from research.experiment.config_keys import GROUP_TABLES, SECTION_TABLES
from research.transforms.pipeline import TRANSFORMS

TABLES = SECTION_TABLES | GROUP_TABLES
FUNCTIONS = [(n, f) for table in TABLES.values() for n, f in table.items()]
FUNCTIONS += [*TRANSFORMS.items(), *WALKS.items()]
FUNCTIONS += [(name, report.measure) for name, report in REPORTS.items()]


def test_every_bound_is_that_of_an_argument_and_fits_the_defaults():
    names = set()
    for name, function in FUNCTIONS:
        for key, parameter in inspect.signature(function).parameters.items():
            names |= {key, f"{name}.{key}"}
            has_default = parameter.default not in (parameter.empty, None)
            if parameter.kind is parameter.KEYWORD_ONLY and has_default:
                check_type(name, key, parameter.default, parameter.annotation)
    assert set(BOUND_OF) <= names


@pytest.mark.parametrize(
    "key, name, argument, value, bound",
    [
        ("loss", "infonce", "temperature", -0.05, "above 0"),
        ("loss", "gte", "temperature", 0, "above 0"),
        ("loss", "cosent", "scale", 0.0, "above 0"),
        ("optimizer", "adamw", "learning_rate", -1e-4, "at least 0"),
        ("optimizer", "adamw", "learning_rate", math.inf, "at least 0"),
        ("optimizer", "adamw", "betas", (0.9, 1.5), r"in 0 \.\.\. 1"),
        ("size_loss", "matryoshka", "dims", (64, 0), "above 0"),
        ("encoder", "bert", "dropout", 1.0, "at least 0 and below 1"),
        ("data", "files", "score_range", 0.0, "above 0"),
        ("tuning", "lora", "rank", 0, "above 0"),
        ("evals", "geometry", "texts", -5, "above 0"),
        ("evals", "mexa", "sentences", 0, "above 0"),
    ],
)
def test_a_number_beyond_its_bound_is_refused(key, name, argument, value, bound):
    message = rf"{name}'s {argument} is .*; it should be {bound}"
    with pytest.raises(ValueError, match=message):
        bind(TABLES[key], {"name": name, argument: value})
    if math.isfinite(sum(value) if isinstance(value, tuple) else value):
        with pytest.raises(ValueError, match=message):
            parse_section(TABLES[key], f"{name}({argument}={value!r})")


def test_numbers_that_mean_something_at_their_ends_are_taken():
    bind(TABLES["optimizer"], {"name": "adamw", "learning_rate": 0, "clip_norm": 0.0})
    bind(TABLES["loss"], {"name": "infonce", "alpha": -1.0, "margin": -0.1})
    bind(TABLES["data"], {"name": "files", "path": "x", "negatives": -1})
    for name in ("st5_adaptive", "st6_adaptive"):
        options = {"layers_per_step": -1, "kl_temperature": 0.0}
        bind(TABLES["size_loss"], {"name": name, **options})
