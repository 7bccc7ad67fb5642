"""How the package is cut: counts that a reader can follow from one commit to another.

python -m tests.shape                          this checkout
python -m tests.shape --root ../old            another one
python -m tests.shape --list                   also names the functions that are over a bound
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

_LONG, _MANY = 50, 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(root: Path) -> Iterator[tuple[Path, Function]]:
    """Every function and method of the package."""
    for path in sorted((root / "vsr_hpc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield path.relative_to(root), node


def imports(root: Path) -> dict[str, set[str]]:
    """Which module imports which, also inside functions; imports for the type checker alone are left out."""
    package = root / "vsr_hpc"
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.module:
                yield from (f"{child.module}.{each.name}" for each in child.names)
            elif isinstance(child, ast.Import):
                yield from (each.name for each in child.names)
            yield from visit(child)

    found = {}
    for name, path in modules.items():
        names = visit(ast.parse(path.read_text(encoding="utf-8")))
        whole = {each if each in modules else each.rpartition(".")[0] for each in names}
        found[name] = {each for each in whole if each in modules and each != name}
    return found


def modules_in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that need each other, and those that need one of them."""
    left = dict(graph)
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    return set(left)


def _parameters(node: Function) -> int:
    given = node.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--list", action="store_true", help="name the functions that are over a bound")
    given = parser.parse_args()
    root: Path = given.root
    top = [path for path in (root / "vsr_hpc").iterdir() if path.is_dir() or path.suffix == ".py"]
    found = [(path, node, (node.end_lineno or 0) - node.lineno + 1) for path, node in functions(root)]
    longest = max(found, key=lambda each: each[2])
    print(f"packages and files at the top of vsr_hpc/: {len([p for p in top if p.name != '__pycache__'])}")
    print(f"modules in import circles: {len(modules_in_circles(imports(root)))}")
    print(f"functions: {len(found)}; longest: {longest[0]}:{longest[1].name}, {longest[2]} lines")
    print(f"functions over {_LONG} lines: {sum(lines > _LONG for _, _, lines in found)}")
    print(f"functions over {_MANY} parameters: {sum(_parameters(node) > _MANY for _, node, _ in found)}")

    for path, node, lines in sorted(found, key=lambda each: -each[2]) if given.list else ():
        if lines > _LONG or _parameters(node) > _MANY:
            print(f"  {path}:{node.lineno} {node.name}: {lines} lines, {_parameters(node)} parameters")


if __name__ == "__main__":
    main()
