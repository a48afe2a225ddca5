"""Who may import what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "research").rglob("*.py"))
LINEN = {
    *("Module", "compact", "Dense", "DenseGeneral", "Embed"),
    *("LayerNorm", "RMSNorm", "Dropout", "initializers"),
}
# library -> the only places that may import it.
ONLY = {
    "flax": tuple(f"models/{name}.py" for name in ("layers", "linear", "experts")),
    "tensorflow_datasets": ("data/sources.py", "data/pydocs.py"),
    "ml_collections": ("sections.py", "experiment.py"),
    "orbax": ("train/checkpoints.py",),
    "torch": (),
    "transformers": (),
    "sentence_transformers": (),
}
ABOVE = ("objectives", "experiment")
# part of the library -> the parts that it may not import.
NEVER = {
    "losses": ("models", "pretraining", "data", "train", "eval", *ABOVE),
    "data": ("models", "losses", "pretraining", "train", "eval", *ABOVE),
    "models": ("losses", "pretraining", "data", "train", "eval", *ABOVE),
    "pretraining": ("data", "train", "eval", *ABOVE),
    "train": ("models", "losses", "pretraining", "data", "eval", *ABOVE),
    "eval": ("losses", "pretraining", "train", *ABOVE),
}


def imports(path):
    """(module, whether it is imported when the file is) of every import in a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node in tree.body
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in tree.body


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    name = str(path.relative_to(ROOT / "research"))
    part = name.split("/")[0]
    for module, at_top in imports(path):
        library, _, rest = module.partition(".")
        assert not (at_top and library in ONLY and name not in ONLY[library]), module
        assert library not in ("launch", "configs", "tests"), module
        if library == "research":
            assert rest.split(".")[0] not in NEVER.get(part, ()), module


def test_flax_is_nine_names_of_linen():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "nn"
            ):
                assert node.attr in LINEN, f"{path}: nn.{node.attr}"
