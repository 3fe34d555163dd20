"""What of a module is behaviour: its syntax tree without what no test should have to notice."""

from __future__ import annotations

import ast

LOG_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
# Whether an object can be changed, how large it is, how its arguments are passed and what a dict has to hold is told
# to programmers.
DECLARATIONS = {"frozen", "slots", "gc", "kw_only", "maxsize", "total"}
# What is remembered is found sooner, and is the same.
CACHES = {"cache", "lru_cache"}


def behaviour(source: str) -> str:
    """The same text for two sources that only differ in what is no behaviour.

    Left out are annotations, log messages, the words of errors, what only type checkers read, caches, how arguments are
    passed, and keywords that guard against mistakes of programmers (`frozen`, `strict` of `zip`).

    Raises SyntaxError.
    """
    return ast.dump(_WithoutTheRest().visit(ast.parse(source)))


class _WithoutTheRest(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = _evaluated(node.annotation)
        return self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults += [each for each in node.kw_defaults if each is not None]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = _evaluated(node.annotation) or ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._definition(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._definition(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.keywords = _behaving(node.keywords)
        return self._definition(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node.func:
            case ast.Name("dataclass"):
                node.keywords = _behaving(node.keywords)
            case ast.Name("zip"):
                node.keywords = [each for each in node.keywords if each.arg != "strict"]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        match node.value:
            case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level)) if (
                level in LOG_LEVELS
            ):
                return ast.Pass()
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if any(name.id == "TYPE_CHECKING" for name in _names(node.test)):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self.generic_visit(_Wordless().visit(node))

    def _definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.AST:
        if not isinstance(node, ast.ClassDef):
            node.returns = None
        node.decorator_list = [
            each
            for each in node.decorator_list
            if not any(name.id in CACHES for name in _names(each))
        ]
        return self.generic_visit(node)


class _Wordless(ast.NodeTransformer):
    """Takes every text that is put together out of an expression."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        sides = (node.left, node.right)
        is_text = any(isinstance(each, ast.Constant) and each.value == "" for each in sides)
        return ast.Constant("") if is_text else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node


def _evaluated(annotation: ast.expr | None) -> ast.expr | None:
    """An annotation that is more than a type, such as `Annotated[int, Field(ge=1)]`."""
    if annotation and any(isinstance(each, ast.Call) for each in ast.walk(annotation)):
        return annotation
    return None


def _behaving(keywords: list[ast.keyword]) -> list[ast.keyword]:
    return [each for each in keywords if each.arg not in DECLARATIONS]


def _names(node: ast.AST) -> list[ast.Name]:
    return [each for each in ast.walk(node) if isinstance(each, ast.Name)]
