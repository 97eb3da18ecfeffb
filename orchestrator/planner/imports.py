"""Does an import path lead to something? Found without running the module.

A model's module may import torch, which takes seconds and belongs in a worker. So the module is
located, its source is parsed, and the name is looked for at its top level.
"""

import ast
import difflib
import importlib.util
from pathlib import Path

from orchestrator.errors import SpecError


def check_import(target: str, field: str) -> None:
    """Refuse a `package.module:name` that cannot be imported.

    Parent packages are imported, the module itself is not. A module without Python source, or one
    that makes its names at run time (`__getattr__`, `import *`), is taken at its word.

    Raises:
        SpecError: no such module, or no such name in it.
    """
    module, _, name = target.partition(":")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise SpecError(field, f"{target!r} does not import ({error})", _REMEDY) from error
    if found is None:
        raise SpecError(field, f"{target!r}: there is no module {module!r}", _REMEDY)
    if found.origin is None or not found.origin.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(found.origin).read_bytes(), found.origin)
    except SyntaxError as error:
        problem = f"{target!r}: {found.origin} is not Python ({error})"
        raise SpecError(field, problem, "Mend the file") from error
    names = _top_level_names(tree)
    name = name.partition(".")[0]  # what is inside it is made when the module runs
    if name not in names and not names & {"*", "__getattr__"}:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean '{module}:{near[0]}'?" if near else f"Define {name} in {found.origin}"
        raise SpecError(field, f"{target!r}: {module} has no {name!r}", hint)


_REMEDY = "Install the package, or put its folder on PYTHONPATH"


def near_sibling(path: Path) -> str:
    """A remedy for a path that does not exist: the name beside it that looks most like it."""
    if path.parent.is_dir():
        names = [entry.name for entry in path.parent.iterdir()]
        close = difflib.get_close_matches(path.name, names, n=1)
        if close:
            return f"Did you mean {str(path.parent / close[0])!r}?"
    return "Give a path that exists"


def _top_level_names(tree: ast.Module) -> set[str]:
    """Names that the module's statements bind, those under `if`, `try` and `with` included."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending.extend(ast.iter_child_nodes(node))
    return names
