"""calmloop's controller.

numba keeps what it compiled, and compiles anew when the file of a function has changed; that a function which was compiled into it has
changed, in another file, it does not see. So the cache has a folder of its own for each state of all files here.
"""

import os
import sys
from hashlib import blake2b
from pathlib import Path


def cache_folder(*packages: Path) -> Path:
    """Folder of compiled code that belongs to these packages' files as they are now, in the first or in CALMLOOP_CACHE_DIR."""
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    state = repr([(os.fspath(file.relative_to(file.parents[1])), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files])
    base = os.environ.get("CALMLOOP_CACHE_DIR")  # for a service that may not write where it is installed
    return (Path(base) if base else packages[0] / "__pycache__") / f"compiled-{blake2b(state.encode(), digest_size=8).hexdigest()}"


_HERE = Path(__file__).resolve().parent
_FOLDER = os.environ.setdefault("NUMBA_CACHE_DIR", os.fspath(cache_folder(_HERE, _HERE.parent / "drivers")))
if "numba" in sys.modules:  # it has read the environment already
    sys.modules["numba"].config.CACHE_DIR = _FOLDER
