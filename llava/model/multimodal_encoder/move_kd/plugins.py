"""The directory is the registry: `teachers/sam.py` is the teacher `sam`, `objectives/cosine.py` the objective `cosine`.

A plug-in file assigns one object to the package's word in capitals (`TEACHER = ...`, `OBJECTIVE = ...`).
Nothing is imported before it is asked for. `base.py` and files that start with an underscore are no plug-ins.
"""

import importlib
import pkgutil
from typing import Any


def plugin_names(package: str) -> list[str]:
    """Names of the plug-in files in a package, sorted; none of them is imported."""
    folder = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(folder))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def load_plugin(package: str, name: str) -> Any:
    """What the file `name` of `package` offers, `TEACHER` for a package called `teachers`, and so on.

    Raises ValueError for an unknown name, with the names there are, and for a file without the assignment.
    """
    kind = package.rpartition(".")[2].removesuffix("s")
    known = plugin_names(package)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; there are: {', '.join(known)} (the files in {package})")
    module = importlib.import_module(f"{package}.{name}")
    if kind.upper() not in vars(module):
        raise ValueError(f"{module.__file__} offers no {kind}: it must assign {kind.upper()} = ...")
    return vars(module)[kind.upper()]
