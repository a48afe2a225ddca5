"""The commands: python -m launch.train and the like."""

import os
import sys

# A step's arrays are allocated anew, and touching them page by page takes an eighth of
# its time on CPU: with this glibc asks for pages of 2 MiB. It is read when a process
# starts, so that the command starts once more, before it has imported anything.
_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_command = sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("launch.")
if _command and sys.platform == "linux" and _TUNABLES not in os.environ:
    os.environ[_TUNABLES] = _HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
