"""Which layers' weights are read by the modules around them, as the source of their classes has it.

A module that calls its layers works with any layer. One that reads a weight itself, as T5 does to convert its
input to the weight's type (`x.to(self.wo.weight.dtype)`) and Mamba to multiply by it, fails with FP8 codes.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import operator
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from gemm_ladder.layers import weights

# Beginnings of the names of methods that are called before a model is used, or to print it; without the
# underscores in front.
PREPARING = ("init_", "initialize", "post_init", "reset_parameters", "tie_weights", "repr_", "extra_repr")
# Attributes of a weight that are the same, or mean the same, in FP8.
HARMLESS = {"device", "dim", "is_meta", "ndim", "numel", "requires_grad", "shape", "size"}
COMPARED = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le},
    **{ast.Gt: operator.gt, ast.GtE: operator.ge},
}
ANY = "*"  # an index that is not known
# What only layers in FP8 have: a method that uses it as well is ready for one.
OF_FP8 = ("dequantized_weight", weights.SCALES)
# Attributes of modules that change while a model is used.
CHANGING = {"gradient_checkpointing", "training"}
# What transformers wants to have more bits, as parts of paths.
KEPT = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")

Chain = tuple[str, ...]


class _Read(NamedTuple):
    """A method reads a weight, by its path from `self`.

    `conditions` are those of the branches around it: an expression, and whether it has to hold.
    """

    method: str
    chain: Chain
    own: str
    conditions: tuple[tuple[ast.expr, bool], ...]

    def of(self, below: Chain, module: torch.nn.Module) -> bool:
        """Whether this is the weight at a path inside of a module, and its branch can be taken there."""
        return (
            len(self.chain) == len(below)
            and all(one in (ANY, part) for one, part in zip(self.chain, below, strict=True))
            and all(_holds(test, self.own, module) in (None, needed) for test, needed in self.conditions)
        )


class Readers:
    """The modules of a model that read weights of layers inside of them.

    Args:
        model: the model.
        names: what weights are called in their layers, such as "weight".
    """

    def __init__(self, model: torch.nn.Module, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._of_classes: dict[type, list[_Read]] = {}

    def of(self, path: str) -> str:
        """The first method that reads a weight, as "Class.method"; "" if there is none.

        Args:
            path: of the weight, such as "encoder.wo.weight".
        """
        for module, below in self.around(path):
            for read in self._read_by(type(module)):
                if read.of(below, module):
                    return read.method
        return ""

    def around(self, path: str) -> Iterator[tuple[torch.nn.Module, Chain]]:
        """The modules that a weight's layer is inside of, the outermost first, and the path from each."""
        parts = tuple(path.split("."))
        for depth in range(len(parts) - 1):
            module = self._modules.get(".".join(parts[:depth]))
            if module is not None:
                yield module, parts[depth:]

    def _read_by(self, kind: type) -> list[_Read]:
        """The weights that methods of a class read; not those of torch's own classes."""
        if kind not in self._of_classes:
            self._of_classes[kind] = [
                read
                for owner in kind.__mro__
                if not owner.__module__.startswith(("torch.", "builtins"))
                for method, value in vars(owner).items()
                if not f"{method.strip('_')}_".startswith(PREPARING)
                for function in _functions(value)
                if _mentions(function.__code__, self._names)
                for read in _reads(f"{owner.__name__}.{method}", function, self._names)
            ]
        return self._of_classes[kind]


def kept_in_fp32(module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """What a model of transformers wants in FP32: the attribute that says so, and a part of paths."""
    for attribute in KEPT:
        given = getattr(module, attribute, None)
        if isinstance(given, (list, tuple, set, frozenset)):
            yield from ((attribute, part) for part in sorted(map(str, given)))


def _functions(value: object) -> Iterator[types.FunctionType]:
    """The functions behind what a class has under a name: a method, or those of a property."""
    candidates = (value.fget, value.fset) if isinstance(value, property) else (value,)
    for one in candidates:
        found = inspect.unwrap(one) if callable(one) else None
        if isinstance(found, types.FunctionType):
            yield found


def _mentions(code: types.CodeType, names: frozenset[str]) -> bool:
    """Whether a function has one of the names at all: few do, and only their source need be read."""
    return (
        not names.isdisjoint(code.co_names)
        or any(one in names for one in code.co_consts if isinstance(one, str))
        or any(_mentions(one, names) for one in code.co_consts if isinstance(one, types.CodeType))
    )


def _reads(method: str, function: types.FunctionType, names: frozenset[str]) -> list[_Read]:
    """Where a function reads a path from `self` that ends in one of the names; empty without source."""
    try:
        source = inspect.getsource(function)
        tree = ast.parse(f"class _:\n{source}" if source[:1].isspace() else source)
    except (OSError, TypeError, SyntaxError):
        return []
    nodes = list(ast.walk(tree))
    root = next((one for one in nodes if isinstance(one, (ast.FunctionDef, ast.Lambda))), None)
    arguments = [*root.args.posonlyargs, *root.args.args] if root else []
    if not arguments:
        return []
    own = arguments[0].arg
    known: dict[str, set[Chain]] = {own: {()}}
    for _ in range(2):  # a name may stand for another that is given a value further down
        for node in nodes:
            _learn(node, known)
    harmless = {id(one.value) for one in nodes if isinstance(one, ast.Attribute) and one.attr in HARMLESS}
    conditions = _conditions(nodes)
    paths = {chain for node in nodes if isinstance(node, ast.Attribute) for chain in _meant(node, known)}
    knows_fp8 = {chain[:-1] for chain in paths if chain and chain[-1].endswith(OF_FP8)}
    return [
        _Read(method, chain, own, conditions.get(id(node), ()))
        for node in nodes
        if isinstance(node, (ast.Attribute, ast.Call)) and id(node) not in harmless
        if not isinstance(getattr(node, "ctx", None), ast.Store)
        for chain in _meant(node, known)
        if len(chain) > 1 and chain[-1] in names and chain[:-1] not in knows_fp8
    ]


def _conditions(nodes: list[ast.AST]) -> dict[int, tuple[tuple[ast.expr, bool], ...]]:
    """The conditions of the branches that each node is in, by the node's id."""
    found: dict[int, tuple[tuple[ast.expr, bool], ...]] = {}
    for node in nodes:
        if not isinstance(node, (ast.If, ast.IfExp)):
            continue
        for branch, needed in ((node.body, True), (node.orelse, False)):
            for top in branch if isinstance(branch, list) else [branch]:
                for inner in ast.walk(top):
                    found[id(inner)] = (*found.get(id(inner), ()), (node.test, needed))
    return found


def _holds(test: ast.expr, own: str, module: torch.nn.Module) -> bool | None:
    """Whether a condition about numbers and strings that a module has holds, such as
    `self.pretraining_tp > 1`; None where that cannot be said."""
    if isinstance(test, ast.BoolOp):
        parts = [_holds(one, own, module) for one in test.values]
        decides = isinstance(test.op, ast.Or)
        return decides if decides in parts else None if None in parts else not decides
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        holds = _holds(test.operand, own, module)
        return None if holds is None else not holds
    compared = [test.left, *test.comparators] if isinstance(test, ast.Compare) else [test]
    try:
        values = [_plain(one, own, module) for one in compared]
        if not isinstance(test, ast.Compare):
            return bool(values[0])
        pairs = zip(test.ops, itertools.pairwise(values), strict=True)
        return all(COMPARED[type(one)](*pair) for one, pair in pairs)
    except (AttributeError, KeyError, TypeError):
        return None


def _plain(node: ast.expr, own: str, module: torch.nn.Module) -> Any:
    """The value of a constant, or of an attribute path from `self` that ends at a number or a string.

    Raises:
        TypeError, AttributeError: it is something else.
    """
    if isinstance(node, ast.Constant):
        return node.value
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    value: Any = module if isinstance(node, ast.Name) and node.id == own and names else None
    for name in reversed(names):
        value = getattr(value, name)
    if not isinstance(value, (bool, int, float, str)) or not CHANGING.isdisjoint(names):
        raise TypeError
    return value


def _learn(node: ast.AST, known: dict[str, set[Chain]]) -> None:
    """Note what a local name stands for: `proj = self.proj`, `for layer in self.layers`."""
    if isinstance(node, ast.Assign):
        targets, value, behind = node.targets, node.value, Chain()
    elif isinstance(node, ast.NamedExpr):
        targets, value, behind = [node.target], node.value, Chain()
    elif isinstance(node, (ast.For, ast.comprehension)):
        targets, value, behind = [node.target], node.iter, (ANY,)
    else:
        return
    for target in targets:
        if isinstance(target, ast.Name) and (found := _meant(value, known)):
            known.setdefault(target.id, set()).update(chain + behind for chain in found)


def _meant(node: ast.AST, known: dict[str, set[Chain]]) -> set[Chain]:
    """The paths from `self` that an expression may stand for; empty if it is something else."""
    if isinstance(node, ast.Name):
        return set(known.get(node.id, ()))
    if isinstance(node, ast.Attribute):
        return {(*chain, node.attr) for chain in _meant(node.value, known)}
    if isinstance(node, ast.Subscript):
        if isinstance(node.slice, ast.Slice):
            return _meant(node.value, known)
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        part = ANY if index is None else str(index)
        return {(*chain, part) for chain in _meant(node.value, known)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        name = node.args[1] if len(node.args) > 1 else None
        if isinstance(name, ast.Constant):
            return {(*chain, str(name.value)) for chain in _meant(node.args[0], known)}
    return set()
