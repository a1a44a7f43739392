"""How a method is written as text: its name, with options in brackets where it has some."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
from typing import Any

from explainers.errors import MethodError
from explainers.methods.registry import META_METHODS, METHODS, MetaMethod, Method


@functools.lru_cache(maxsize=256)  # the same spec is the same function, so that what was compiled for it is found again
def get_method(spec: str) -> Method:
    """The method of that name, with options where the name has some in brackets.

    Args:
        spec: such as `"gradcam"`, `"scorecam(channels=32)"` or `"meta.smooth(gradcam, repetitions=8)"`; values are
            Python literals.

    Returns:
        The method; its name is `spec`, written in one way whatever blanks and order of options it came in.

    Raises:
        MethodError: there is no such method or option; the message lists the valid names and the nearest.
    """
    if spec in METHODS:
        return METHODS[spec]
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError:
        raise _no_method(spec) from None
    if not isinstance(tree, (ast.Call, ast.Name, ast.Attribute)):
        raise _no_method(spec)
    return _from_tree(tree)


def _from_tree(tree: ast.expr) -> Method:
    if not isinstance(tree, ast.Call):
        name = ast.unparse(tree)
        if name in META_METHODS:
            raise MethodError(f"{name} is made of a method, as in {name}(gradcam)")
        return METHODS[name] if name in METHODS else _raise(_no_method(name))
    name = ast.unparse(tree.func)
    options = {str(keyword.arg): _literal(name, keyword) for keyword in sorted(tree.keywords, key=lambda k: str(k.arg))}
    if name in META_METHODS:
        return _from_meta(META_METHODS[name], tree.args, options)
    if name not in METHODS:
        raise _no_method(name)
    method = METHODS[name]
    if tree.args:
        raise MethodError(f"options of {name} are given by name, such as {_example(method.options)}")
    _check_options(name, options, method.options)
    return _with_options(method, options)


def _from_meta(meta_method: MetaMethod, arguments: list[ast.expr], options: dict[str, Any]) -> Method:
    if len(arguments) != 1:
        raise MethodError(f"{meta_method.name} is made of one method, as in {meta_method.name}(gradcam)")
    base = _from_tree(arguments[0])
    _check_options(meta_method.name, options, meta_method.options)
    return dataclasses.replace(
        base,
        name=_canonical(meta_method.name, [base.name], options),
        function=meta_method.function(base.function, **options),
        cost=f"{meta_method.cost}: {base.cost}",
        combine=None,
        reads_gradients=False,
        reads_weights=False,
        seeded=meta_method.seeded or base.seeded,
        expanding=True,
    )


def _with_options(method: Method, options: dict[str, Any]) -> Method:
    if not options:
        return method
    function = functools.wraps(method.function)(functools.partial(method.function, **options))
    return dataclasses.replace(method, name=_canonical(method.name, [], options), function=function)


def _canonical(name: str, arguments: list[str], options: dict[str, Any]) -> str:
    return f"{name}({', '.join([*arguments, *(f'{key}={value!r}' for key, value in options.items())])})"


def _check_options(name: str, options: dict[str, Any], valid: tuple[str, ...]) -> None:
    for option in options:
        if option not in valid:
            nearest = difflib.get_close_matches(str(option), valid, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise MethodError(f"{name} has no option {option!r}.{hint} Its options are: {', '.join(valid) or 'none'}")


def _literal(name: str, keyword: ast.keyword) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except ValueError:
        raise MethodError(
            f"the option {keyword.arg!r} of {name} is a number, a text or a tuple, not {ast.unparse(keyword.value)!r}"
        ) from None


def _example(options: tuple[str, ...]) -> str:
    return f"{options[0]}=..." if options else "none: it has no options"


def _no_method(name: str) -> MethodError:
    names = [*METHODS, *META_METHODS]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join([*METHODS, *(f"{meta_name}(...)" for meta_name in META_METHODS)])
    return MethodError(f"there is no method {name!r}.{hint} The methods are: {listed}")


def _raise(error: Exception) -> Any:
    raise error
