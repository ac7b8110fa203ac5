"""What every public function and class of vptsp_core says of itself, read from the source.

- All of them, methods and properties too, say what they do. A method is spoken for by the one of the same name in a
  base class of the package; special methods, but for ``__call__``, by the class, and what a function holds by the
  function.
- What raises an error of this project in its own body says so ("Raises:", or in words).
- Where an argument or what is returned is an array or a tensor, or a tuple of them, a shape is given: "(N, d)", "(B,)",
  "of any shape", "a scalar". Mappings and iterables of tensors have no one shape.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vptsp_core import errors

PACKAGE = Path(errors.__file__).parent
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
DIMENSION = r"(?:<= ?)?(?:\.\.\.|[\w']{1,8}(?: ?[-+*/] ?[\w']{1,8})*|len\(\w+\)(?: ?\+ ?\d)?)"
SHAPE = re.compile(rf"\({DIMENSION}(?:, {DIMENSION})+\)|\({DIMENSION},\)|\((?:\.\.\.)?\)|\bscalar\b|\bany shape\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def array(annotation: ast.expr | None) -> bool:
    """Whether it is a tensor or an array, perhaps None, or a tuple of them."""
    match annotation:
        case ast.Constant(value=str(text)):
            return array(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return array(left) or array(right)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=inner):
            return any(map(array, inner.elts)) if isinstance(inner, ast.Tuple) else array(inner)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ("Tensor", "ndarray")
    return False


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """All that is in a function, but not in those that it defines."""
    left: list[ast.AST] = list(function.body)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            left += ast.iter_child_nodes(node)


def raises(function: Function) -> bool:
    thrown = [node.exc for node in own_nodes(function) if isinstance(node, ast.Raise)]
    return any(isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id in ERRORS for e in thrown)


def shaped(function: Function) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(map(array, [*(each.annotation for each in arguments), function.returns]))


def complaints(source: str, bases: dict[str, ast.ClassDef]) -> list[str]:
    """Every name in a module that does not keep the rules, and why."""
    module, found = ast.parse(source), []
    if not ast.get_docstring(module):
        found.append("the module: says nothing")

    def told(node: ast.ClassDef, name: str) -> str:
        """What a method or a class says, or else its bases in the package."""
        for each in node.body:
            if isinstance(each, Function) and each.name == name and ast.get_docstring(each):
                return ast.get_docstring(each) or ""
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in bases and (text := told(bases[base.id], name)):
                return text
        return ""

    def look(body: list[ast.stmt], owner: ast.ClassDef | None) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    found.append(f"{node.name}: says nothing")
                look(node.body, node)
            private = isinstance(node, Function) and node.name.startswith("_")
            if not isinstance(node, Function) or (private and node.name not in ("__init__", "__call__")):
                continue
            text = ast.get_docstring(node) or (told(owner, node.name) if owner else "")
            if node.name == "__init__":
                assert owner is not None
                text = ast.get_docstring(owner) or ""
            name = f"{owner.name}.{node.name}" if owner else node.name
            if not text:
                found.append(f"{name}: says nothing")
            if raises(node) and not re.search(r"\b[Rr]aises?\b", text):
                found.append(f"{name}: does not say what it raises")
            if shaped(node) and not SHAPE.search(text):
                found.append(f"{name}: tells no shape")

    look(module.body, None)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
CLASSES = {
    node.name: node
    for path in FILES
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.ClassDef)
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_say_what_they_do_raise_and_take(path):
    assert complaints(path.read_text("utf-8"), CLASSES) == []
