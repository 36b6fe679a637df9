"""`attar plugin new NAME`: a working, tested plugin package to write over."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from string import Template

from attar.errors import InputError

_FILES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "attar_$module.py": "plugin.py.template",
    "tests/test_$module.py": "test_plugin.py.template",
}


def new_plugin(name: str, directory: str | Path = ".") -> Path:
    """Write the package `attar-NAME` into a new folder of that name under `directory`.

    It holds a module with one pass and its hook, the entry point by which attar finds it, a README, and a
    test that runs the conformance kit. All files appear at once or not at all.

    Args:
        name: lower-case letters, digits, `-` and `_`, beginning with a letter. It becomes the family of the
            pass, the entry point, and (after `attar_`) the module.
        directory: an existing folder.

    Returns:
        The new folder.

    Raises:
        InputError: the name cannot be used or is taken by an installed plugin, the folder exists already, or
            it cannot be written.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise InputError(
            f"{name!r} cannot name a plugin",
            hint="use lower-case letters, digits, - and _, beginning with a letter: my-plugin",
        )
    module = name.replace("-", "_")
    if name.startswith(("attar-", "attar_")) or name == "attar":
        raise InputError(
            f"{name!r}: leave out 'attar', it is put in front", hint=f"try {name[6:] or 'my-plugin'!r}"
        )
    if keyword.iskeyword(module):
        raise InputError(f"{name!r} is a keyword of Python, so no pass family can have that name")
    taken = {e.name: e for e in importlib.metadata.entry_points(group="attar")}
    if module in taken:
        dist = taken[module].dist
        raise InputError(
            f"the plugin name {module!r} is taken by {dist.name if dist else taken[module].value}"
        )
    parent = Path(directory)
    if not parent.is_dir():
        raise InputError(f"no such folder: {parent}")
    words = {"name": module.replace("_", "-"), "module": module}
    folder = parent / f"attar-{words['name']}"
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already", hint="choose another name or folder")
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    except OSError as error:
        raise InputError(f"cannot write to {parent}: {error.strerror}") from error
    try:
        part.chmod(0o755)  # mkdtemp makes folders private; a source folder is an ordinary one
        for path, template in _FILES.items():
            target = part / Template(path).substitute(words)
            target.parent.mkdir(exist_ok=True)
            text = resources.files("attar.testing").joinpath("templates", template).read_text("utf-8")
            target.write_text(Template(text).substitute(words), encoding="utf-8")
        part.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
