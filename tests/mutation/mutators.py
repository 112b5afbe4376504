"""Generate the mutants of a module: small changes of its source, each of which a test should detect.

Python code is mutated through its syntax tree. Lua scripts, which are strings of a module, are mutated line by line.
"""

import ast
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from attrs import field, frozen

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "/",
    ast.Mod: "*",
    ast.BitOr: "&",
    ast.BitAnd: "|",
}
_EXCHANGED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SCALE = 16  # a setting that is wrong by this factor is no rounding error
_AS_GOOD_AS_NONE = frozenset({"None", "False"})
_UNTESTABLE_ARGUMENTS = frozenset({"init", "kw_only", "eq", "order", "hash", "alias", "slots"})
_UNTESTABLE_CALLS = frozenset({"TypeVar", "cast", "TypeAlias", "debug", "info"})

_LUA_OPENERS = re.compile(r"\b(?:function|then|do|repeat)\b")
_LUA_CLOSERS = re.compile(r"\b(?:end|until)\b")
_LUA_CONDITION = re.compile(r"\bif (.+?) then\b")
_LUA_TOKEN = re.compile(r"==|~=|, 'PX', ARGV\[\d\]|(?<![\w.\[])-?1\b")
_LUA_REPLACED = {"==": "~=", "~=": "==", "-1": "1", "1": "2", ", 'PX', ARGV[2]": ""}


@frozen
class Mutant:
    """One change of one module.

    Attributes:
        path: the module, relative to the project.
        line: where the change begins.
        column: its first byte in that line, from 1.
        kind: the mutator that made it.
        start: the first byte that is replaced.
        end: the byte after the last one that is replaced.
        replacement: the new source.
        before: the replaced source.
    """

    path: str
    line: int
    column: int
    kind: str
    start: int
    end: int
    replacement: str
    before: str = field(repr=False)

    def apply(self, source: bytes) -> bytes:
        """Return the mutated source."""
        return source[: self.start] + self.replacement.encode() + source[self.end :]

    def __str__(self) -> str:
        before, after = (" ".join(text.split()) for text in (self.before, self.replacement))
        return f"{self.path}:{self.line}:{self.column} [{self.kind}] {_shortened(before)} -> {_shortened(after)}"


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a module, in the order of its source."""
    found = _Generator(path, source)
    found.visit(ast.parse(source))
    unique = {(mutant.start, mutant.end, mutant.replacement): mutant for mutant in found.mutants}
    compilable = [mutant for mutant in unique.values() if _compiles(mutant.apply(source))]
    return sorted(compilable, key=lambda mutant: (mutant.start, mutant.end, mutant.replacement))


def _compiles(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _shortened(text: str) -> str:
    return text if len(text) <= 70 else f"{text[:67]}..."


class _Generator(ast.NodeVisitor):
    def __init__(self, path: str, source: bytes) -> None:
        self.mutants: list[Mutant] = []
        self._path = path
        self._source = source
        self._offsets = [0]
        for line in source.splitlines(keepends=True):
            self._offsets.append(self._offsets[-1] + len(line))
        self._is_setting = True  # outside of functions, and in the defaults of their arguments

    # Statements

    def visit_Module(self, node: ast.Module) -> None:
        self._visit_body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_body(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list):
            return
        was_setting = self._is_setting
        self._is_setting = True
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._is_setting = False
        self._visit_body(node.body)
        self._is_setting = was_setting

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  (the name is the visitor's)

    def _visit_body(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        """Skip it: whatever is not imported fails at once."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Skip it as well."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and ast.unparse(node.annotation) != "TypeAlias":
            self._visit_assigned(node.value, node.target)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_assigned(node.value, node.targets[0])
        if not isinstance(node.targets[0], ast.Name | ast.Tuple) and not self._is_setting:
            self._add("statement", node, "pass")

    def _visit_assigned(self, value: ast.expr, target: ast.expr) -> None:
        if isinstance(target, ast.Name) and target.id == "__all__":
            return
        for node in ast.walk(value):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "redis.call" in node.value:
                self._add_lua(node)
        self.visit(value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        self._add("statement", node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        if not isinstance(value, ast.Call) or _name_of(value) in _UNTESTABLE_CALLS:
            return
        self.visit(value)
        self._add("statement", node, "pass")

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add("statement", node, "pass")

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add("statement", node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add("statement", node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self._add("statement", node, "pass")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._add("statement", node, "pass")
        else:
            if ast.unparse(node.value) not in _AS_GOOD_AS_NONE:
                self._add("return", node, "return None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._negate(node.test)
        self.generic_visit(node)

    # Expressions

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            self._add_operator("comparison", left, right, _COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._add_operator("boolean", left, right, "or" if isinstance(node.op, ast.And) else "and")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        is_text = any(isinstance(part, ast.Constant | ast.JoinedStr) and _is_text(part) for part in ast.walk(node))
        if type(node.op) in _ARITHMETIC and not is_text:
            self._add_operator("arithmetic", node.left, node.right, _ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add("boolean", node, f"({self._text(node.operand)})")
        elif isinstance(node.op, ast.USub):
            self._add("arithmetic", node, f"({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name_of(node)
        if name in _UNTESTABLE_CALLS:
            return
        if isinstance(node.func, ast.Name) and name in _EXCHANGED:
            self._add("call", node.func, _EXCHANGED[name])
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if not (name == "field" and keyword.arg in _UNTESTABLE_ARGUMENTS):
                self.visit(keyword.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add("constant", node, str(not value))
        elif isinstance(value, int | float):
            self._add("constant", node, f"{value + 1}")
            self._add("constant", node, f"({value - 1})")
            if self._is_setting and abs(value) > 0:
                self._add("constant", node, f"{value * _SCALE}")
                self._add("constant", node, f"{value / _SCALE}")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Skip it: before Python 3.12 the positions within an f-string are wrong."""

    # Replacements

    def _negate(self, test: ast.expr) -> None:
        self._add("condition", test, f"(not ({self._text(test)}))")

    def _add_operator(self, kind: str, left: ast.expr, right: ast.expr, operator: str) -> None:
        start, end = self._span(left)[1], self._span(right)[0]
        # Between two operands stand the operator and what encloses them in parentheses.
        text = self._source[start:end].decode()
        if "#" in text or (found := re.search(r"not\s+in|is\s+not|[^\s()\\]+(?:\s*$)?", text)) is None:
            return
        old = found.group().strip()
        start += len(text[: found.start()].encode())
        self._append(kind, start, start + len(old.encode()), operator)

    def _add(self, kind: str, node: ast.stmt | ast.expr, replacement: str) -> None:
        self._append(kind, *self._span(node), replacement)

    def _append(self, kind: str, start: int, end: int, replacement: str) -> None:
        line = bisect_right(self._offsets, start)
        column = start - self._offsets[line - 1] + 1
        before = self._source[start:end].decode()
        self.mutants.append(Mutant(self._path, line, column, kind, start, end, replacement, before))

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offsets[node.lineno - 1] + node.col_offset, self._offsets[
            node.end_lineno - 1
        ] + node.end_col_offset

    def _add_lua(self, node: ast.Constant) -> None:
        """Mutate each line of a script that is written as a multi-line string."""
        start, end = self._span(node)
        script = self._source[start:end]
        offset = start
        for line in script.splitlines(keepends=True):
            for first, last, replacement in _lua_changes(line.decode().rstrip("\n")):
                self._append("lua", offset + first, offset + last, replacement)
            offset += len(line)


def _lua_changes(line: str) -> Iterator[tuple[int, int, str]]:
    """Return the changes of one line of Lua: first and last column, and the replacement."""
    if not line.strip() or '"""' in line:
        return
    is_whole = len(_LUA_OPENERS.findall(line)) == len(_LUA_CLOSERS.findall(line))
    if is_whole and not line.lstrip().startswith("return"):
        yield 0, len(line), ""
    if (condition := _LUA_CONDITION.search(line)) is not None:
        first, last = condition.span(1)
        yield first, last, f"not ({condition[1]})"
        yield first, last, "true"
    for found in _LUA_TOKEN.finditer(line):
        yield *found.span(), _LUA_REPLACED[found.group()]


def _is_text(node: ast.Constant | ast.JoinedStr) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node.value, str | bytes)


def _name_of(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
