"""Who may import what: every package only from those below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "research").rglob("*.py"))
LINEN = {
    "Module",
    "compact",
    "Dense",
    "DenseGeneral",
    "Embed",
    "LayerNorm",
    "RMSNorm",
    "Dropout",
    "initializers",
}
# library -> the only places that may import it when they are imported themselves.
ONLY = {
    "flax": (
        "models/embedding.py",
        "models/layers.py",
        "models/linear.py",
        "models/moe.py",
    ),
    "tensorflow_datasets": ("data/sources.py", "data/pydocs.py"),
    "ml_collections": ("config_sections.py", "experiment/"),
    "orbax": ("train/checkpoints.py",),
    "datasets": (),
    "matplotlib": (),
    "sklearn": (),
    "tensorboardX": (),
    "torch": (),
    "transformers": (),
    "sentence_transformers": (),
}
# Libraries that take long to import, or import others that do. Configs and commands are
# there without them, so that a mistake in a flag is reported at once.
HEAVY = (
    "datasets",
    "matplotlib",
    "pandas",
    "scipy.stats",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
)
IMPORT_ALL = """
import importlib, pkgutil, sys
import configs, launch
from absl import flags

for package in (configs, launch):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        # Two commands may have a flag of the same name
        for flag in list(flags.FLAGS):
            delattr(flags.FLAGS, flag)
print(*sys.modules)
"""
# What every package may import: the eight files on the ground, and these. A package
# stands above all that it imports.
GROUND = (
    "types",
    "config_bounds",
    "config_sections",
    "sharding",
    "atomic_write",
    "file_lock",
    "processes",
    "progress",
)
MAY = {
    "types": (),
    "config_bounds": (),
    "config_sections": ("config_bounds",),
    "sharding": ("types",),
    "atomic_write": (),
    "processes": (),
    "progress": ("processes",),
    "file_lock": ("atomic_write", "processes"),
    "transforms": (),
    "text": (),
    "train": (),
    "losses": ("transforms",),
    "models": ("transforms",),
    "data": ("transforms", "text"),
    "objectives": ("transforms", "losses", "models"),
    "inference": ("transforms", "text", "models"),
    "interop": ("transforms", "text", "train", "models", "inference"),
    "eval": ("transforms", "text", "models", "data", "objectives", "inference"),
    "analysis": (
        "transforms",
        "text",
        "train",
        "losses",
        "models",
        "data",
        "objectives",
        "inference",
        "interop",
        "eval",
    ),
    "experiment": (
        "transforms",
        "text",
        "train",
        "losses",
        "models",
        "data",
        "objectives",
        "inference",
        "interop",
        "eval",
    ),
}
# Of objectives only the loss of next tokens serves eval, and only perplexity.
EXCEPT = {("eval", "objectives"): ("eval/perplexity.py", "research.objectives.causal")}
# What models say of themselves goes by arguments and results, not by collections.
COLLECTIONS = {"sow", "has_variable", "get_variable", "put_variable", "mutable"}


def imports(path):
    """(module, whether it is imported when the file is) of every import in a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in tree.body


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    name = str(path.relative_to(ROOT / "research"))
    package = name.split("/")[0].removesuffix(".py")
    for module, at_top in imports(path):
        library, _, rest = module.partition(".")
        if at_top and library in ONLY:
            assert name.startswith(ONLY[library]), f"{name} imports {module}"
        # SciPy imports its parts when they are first used, scipy.stats in 0.6 s.
        assert not (at_top and module.startswith("scipy.")), f"{name} imports {module}"
        assert library not in ("launch", "configs", "tests"), module
        if library == "research":
            other = rest.split(".")[0]
            ground = GROUND if package in MAY and package not in GROUND else ()
            allowed = (package, *MAY.get(package, ()), *ground)
            assert other in allowed, f"{name} imports {module}"
            if (package, other) in EXCEPT:
                file, only = EXCEPT[package, other]
                assert name == file and module.startswith(only), module


def test_every_package_has_its_rule():
    names = {str(p.relative_to(ROOT / "research")).split("/")[0] for p in FILES}
    assert {name.removesuffix(".py") for name in names} - {"__init__"} == set(MAY)


def test_packages_stand_above_what_they_import():
    order = list(MAY)
    for package, others in MAY.items():
        assert all(order.index(other) < order.index(package) for other in others)


def test_flax_is_nine_names_of_linen():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "nn"
            ):
                assert node.attr in LINEN, f"{path}: nn.{node.attr}"


def test_models_have_no_collections_besides_params():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "attr", None), getattr(node, "arg", None)}
            assert not names & COLLECTIONS, f"{path}: {names & COLLECTIONS}"


def test_configs_and_commands_import_no_heavy_library():
    command = [sys.executable, "-c", IMPORT_ALL]
    modules = subprocess.check_output(command, cwd=ROOT, text=True).split()
    assert {"configs.finetune", "launch.embed", "jax"} <= set(modules)
    assert sorted(set(HEAVY) & set(modules)) == []
