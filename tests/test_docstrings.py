"""Check the docstrings of every public function and class of vptsp_core, in the source.

- Each has a docstring, also methods and properties. A method can inherit it from a base class of the package. Special
  methods except ``__call__`` and functions inside functions need none.
- A function that raises an error of this project says so ("Raises:", or in words).
- If an argument or the result is an array, a tensor or a tuple of them, the docstring gives a shape: "(N, d)", "(B,)",
  "of any shape", "a scalar". Mappings and iterables of tensors have no single shape.
- Its examples give what they show.
"""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

from vptsp_core import errors

PACKAGE = Path(errors.__file__).parent
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
DIMENSION = r"(?:<= ?)?(?:\.\.\.|[\w']{1,8}(?: ?[-+*/] ?[\w']{1,8})*|len\(\w+\)(?: ?\+ ?\d)?)"
SHAPE = re.compile(rf"\({DIMENSION}(?:, {DIMENSION})+\)|\({DIMENSION},\)|\((?:\.\.\.)?\)|\bscalar\b|\bany shape\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def array(annotation: ast.expr | None) -> bool:
    """Return whether an annotation is a tensor or an array, or None with one, or a tuple of them."""
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


def raises(function: Function) -> bool:
    thrown = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise)]
    return any(isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id in ERRORS for e in thrown)


def shaped(function: Function) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(map(array, [*(each.annotation for each in arguments), function.returns]))


def documented(owner: ast.ClassDef, name: str, bases: dict[str, ast.ClassDef]) -> str:
    """Return the docstring of a method, or that of the same method in a base class of the package."""
    for each in owner.body:
        if isinstance(each, Function) and each.name == name and ast.get_docstring(each):
            return ast.get_docstring(each) or ""
    inherited = [documented(bases[base.id], name, bases)
                 for base in owner.bases if isinstance(base, ast.Name) and base.id in bases]  # fmt: skip
    return next(filter(None, inherited), "")


def complaints(source: str, bases: dict[str, ast.ClassDef]) -> list[str]:
    """Return every name in a module that breaks a rule, with the rule."""
    module = ast.parse(source)
    found = [] if ast.get_docstring(module) else ["the module: no docstring"]
    texts = [(node, node.name, ast.get_docstring(node)) for node in module.body if isinstance(node, Function)]
    for owner in module.body:
        if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_"):
            texts.append((owner, owner.name, ast.get_docstring(owner)))
            for node in filter(lambda each: isinstance(each, Function), owner.body):
                text = ast.get_docstring(owner) if node.name == "__init__" else documented(owner, node.name, bases)
                texts.append((node, f"{owner.name}.{node.name}", text))
    for node, name, text in texts:
        if node.name.startswith("_") and node.name not in ("__init__", "__call__"):
            continue
        if not text:
            found.append(f"{name}: no docstring")
        elif isinstance(node, Function) and raises(node) and not re.search(r"\b[Rr]aises?\b", text):
            found.append(f"{name}: does not say what it raises")
        elif isinstance(node, Function) and shaped(node) and not SHAPE.search(text):
            found.append(f"{name}: gives no shape")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
CLASSES = {
    node.name: node
    for path in FILES
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.ClassDef)
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_document_purpose_errors_and_shapes(path):
    assert complaints(path.read_text("utf-8"), CLASSES) == []


def test_examples():
    tried = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text("utf-8"):
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            result = doctest.testmod(importlib.import_module(name))
            assert not result.failed, name
            tried += result.attempted
    assert tried > 15
