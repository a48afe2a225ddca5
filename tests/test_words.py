"""The words and the shape of the code: names, comments, sizes of files."""

import ast
import io
import tokenize
import tomllib
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("research", "launch", "configs")

MAX_PARTICIPLES = 0.02  # share of all functions
MAX_FUNCTION_WORDS = 0.003  # share of all assigned names and arguments
LONG_FUNCTION = 25  # code lines, from which on a function has a comment
MAX_LINES = 350  # of a file
MAX_TOP_MODULES = 9  # in research/ itself
MAX_MODULES = 22  # in any folder of it
MIN_COMMENTS = 0.07  # per code line

WORDS = tomllib.loads((ROOT / "tests" / "words.toml").read_text())
VERBS, TERMS, HEADS = (set(WORDS[k].split()) for k in ("verbs", "terms", "heads"))
FUNCTION_WORDS = set(WORDS["function_words"].split())
IRREGULAR = set(WORDS["irregular"].split())
NOT_PARTICIPLES = set(WORDS["not_participles"].split())


@lru_cache
def read_files():
    """[(path below the root, source, syntax tree)] of all product files."""
    paths = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
    files = []
    for path in paths:
        source = path.read_text()
        files.append((path.relative_to(ROOT), source, ast.parse(source)))
    return files


def list_functions():
    """[(place, name)] of all functions but special methods and properties."""
    return [
        (f"{path}:{node.lineno}", node.name.strip("_"))
        for path, _, tree in read_files()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("__")
        and "property" not in map(ast.unparse, node.decorator_list)
    ]


def list_bindings():
    """[(place, name)] of all arguments and assigned names."""
    bindings = []
    for path, _, tree in read_files():
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                bindings.append((f"{path}:{node.lineno}", node.arg))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bindings.append((f"{path}:{node.lineno}", node.id))
    return bindings


def is_participle(name):
    if "_" in name or name in NOT_PARTICIPLES:
        return False
    return name in IRREGULAR or len(name) > 4 and name.endswith(("ed", "en"))


def is_verb_or_term(name):
    words = name.split("_")
    return words[0] in VERBS or name in TERMS or len(words) > 1 and words[-1] in HEADS


def docstring_lines(tree):
    """Numbers of the lines of all docstrings."""
    lines = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines |= set(range(body[0].lineno, body[0].end_lineno + 1))
    return lines


def comment_lines(source):
    """Numbers of the lines with a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0] for t in tokens if t.type == tokenize.COMMENT}


def code_lines(source, tree):
    """Numbers of the lines that are neither empty, nor a comment, nor a docstring."""
    docstrings = docstring_lines(tree)
    return {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip()
        and not line.strip().startswith("#")
        and number not in docstrings
    }


def test_functions_are_verbs_or_terms_of_the_field():
    offenders = [
        f"{place} {name}"
        for place, name in list_functions()
        if not is_verb_or_term(name) and not is_participle(name)
    ]
    assert not offenders, "\n".join(offenders)


def test_few_functions_are_bare_participles():
    functions = list_functions()
    offenders = [f"{place} {name}" for place, name in functions if is_participle(name)]
    assert len(offenders) < MAX_PARTICIPLES * len(functions), "\n".join(offenders)


def test_variables_are_nouns():
    bindings = list_bindings()
    offenders = [
        f"{place} {name}" for place, name in bindings if name in FUNCTION_WORDS
    ]
    assert len(offenders) < MAX_FUNCTION_WORDS * len(bindings), "\n".join(offenders)


def test_long_functions_have_comments():
    offenders = []
    for path, source, tree in read_files():
        code, comments = code_lines(source, tree), comment_lines(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                span = set(range(node.lineno, node.end_lineno + 1))
                if len(span & code) > LONG_FUNCTION and not span & comments:
                    offenders.append(f"{path}:{node.lineno} {node.name}")
    assert not offenders, "\n".join(offenders)


def test_code_has_comments():
    code = sum(len(code_lines(source, tree)) for _, source, tree in read_files())
    comments = sum(len(comment_lines(source)) for _, source, _ in read_files())
    assert comments > MIN_COMMENTS * code, f"{comments} comments on {code} lines"


def test_packed_rows_have_segment_ids():
    assert sum(source.count("segment_ids") for _, source, _ in read_files()) > 100


def test_files_and_folders_are_small():
    longest = {path: source.count("\n") for path, source, _ in read_files()}
    long_files = {str(path): n for path, n in longest.items() if n > MAX_LINES}
    assert not long_files, long_files
    research = ROOT / "research"
    assert len(list(research.glob("*.py"))) <= MAX_TOP_MODULES
    folders = [research, *(path for path in research.rglob("*") if path.is_dir())]
    modules = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    large_folders = {str(path): n for path, n in modules.items() if n > MAX_MODULES}
    assert not large_folders, large_folders


def test_class_names_are_unique_in_research():
    places = {}
    for path, _, tree in read_files():
        if path.parts[0] == "research":
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name.strip("_"), []).append(str(path))
    repeated = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not repeated, repeated
