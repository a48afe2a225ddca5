"""The files of research/ and launch/ that a text goes through in `launch.embed`.

python tests/journey.py --model=M --input=texts.txt --output=x.npy

Prints, for the loading of the model, the first call (which traces and compiles) and the
second one, the files whose functions are called, in order, and how often a file is
entered again after another one.
"""

import contextlib
import inspect
import json
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = tuple(f"{ROOT / name}/" for name in ("research", "launch"))


@contextlib.contextmanager
def record_files():
    """Yields a list that grows by a file whenever a function of another one is called.

    What files do when they are imported does not count.
    """
    files, imports, generators = [], [], {}

    def visit(frame, event, argument):
        code = frame.f_code
        if code.co_name == "<module>" and event in ("call", "return"):
            imports.append(frame) if event == "call" else imports.pop()
        if event != "call" or imports or not code.co_filename.startswith(FOLDERS):
            return
        # A generator that goes on is no new call.
        if code.co_flags & inspect.CO_GENERATOR:
            if id(frame) in generators:
                return
            generators[id(frame)] = frame
        name = code.co_filename.removeprefix(f"{ROOT}/")
        if files[-1:] != [name]:
            files.append(name)

    threading.setprofile(visit)
    sys.setprofile(visit)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def summarize(files):
    """The different files in order, and the number of returns to one of them."""
    distinct = list(dict.fromkeys(files))
    return {
        "files": len(distinct),
        "returns": len(files) - len(distinct),
        "order": distinct,
    }


def main():
    from launch import embed
    from launch import flags as options
    from research.data.corpus import find_corpus, read_texts

    embed.flags.FLAGS(sys.argv)
    with record_files() as load:
        texts = [text.text for text in read_texts(find_corpus(embed.INPUT.value))]
        embedder = options.make_embedder(options.load_model())
    with record_files() as trace:
        embedder(texts, "document")
    with record_files() as compiled:
        embedder(texts, "document")
    phases = {"load": load, "first call": trace, "compiled call": compiled}
    phases["all"] = load + trace
    for name, files in phases.items():
        print(json.dumps({name: summarize(files)}, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
