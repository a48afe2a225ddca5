"""Command that brings public data sets from the Hugging Face hub for the recipes.

python -m launch.fetch                        lists the sets
python -m launch.fetch nli stsb squad         brings three of them

Sets are pinned to a commit. Their size and license are shown before they are brought,
and their sha256 is checked, then and when the command is run again.
"""

import os
from pathlib import Path

from launch import main as cli
from research.eval.tables import markdown_table
from research.interop import public_sets
from research.interop.public_sets import PUBLIC_SETS

DATA = cli.define_path(
    "data",
    None,
    "The folder that the sets are written into. Default: the environment variable "
    "EMBAX_DATA, or else ../shared/data, where the recipes read them.",
)
cli.group_flags("Output", DATA)


def main(*names: str) -> dict | None:
    """Brings the named sets, and returns the files of each; lists all without names."""
    if not names:
        print(_list_sets())
        return None
    data = Path(DATA.value or os.environ.get("EMBAX_DATA", "../shared/data"))
    if unknown := [name for name in names if name not in PUBLIC_SETS]:
        raise ValueError(
            f"there is no public set {unknown[0]!r}; there are {', '.join(PUBLIC_SETS)}"
        )
    # All that may be refused comes before the first download.
    parts = {name: public_sets.find_missing_parts(name, data) for name in names}
    files = {}
    for name, missing in parts.items():
        if not missing:
            cli.log(f"{name}: is in {data}, as it was fetched")
            continue
        public_set = PUBLIC_SETS[name]
        files[name] = {
            part: public_sets.list_hub_files(public_set, public_set.parts[part])
            for part in missing
        }
        size = sum(file.size for hub in files[name].values() for file in hub)
        cli.log(
            f"{name}: {size / 1e6:,.1f} MB of {public_set.repo} at "
            f"{public_set.revision[:7]}, license {public_set.license}"
        )
    record = {"data": str(data)}
    for name in parts:
        record[name] = [
            path
            for part, hub_files in files.get(name, {}).items()
            for path in public_sets.fetch_part(name, part, hub_files, data)
        ]
    return record


def _list_sets() -> str:
    """A table of the sets."""
    rows = [
        [name, public_set.repo, ", ".join(public_set.parts), public_set.license]
        for name, public_set in PUBLIC_SETS.items()
    ]
    return markdown_table(["set", "on the hub", "files", "license"], rows)


if __name__ == "__main__":
    cli.run(main, takes_names=True)
