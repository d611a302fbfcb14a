"""The pages of the book that are made from the code: a Sphinx extension, which conf.py loads.

A page that has the line MADE gets in its place what stands in docstrings, in the parsers of the commands and in
choices.toml, so that nothing is said twice.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode

import pvae
from pvae.cli.commands import COMMANDS, command_of
from pvae.core.errors import InputError
from pvae.explore.page import explorer_page
from pvae.runs.run import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MADE = "*What follows is made from the code when the book is built.*"
CHOICES = tomllib.loads((ROOT / "notebooks" / "choices.toml").read_text(encoding="utf-8"))
SYMBOLS = CHOICES.pop("symbols")
MADE_PAGES = ROOT / "notebooks" / "made"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
(LAYERS,) = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
ROOMS = [room for layer in reversed(LAYERS[2:]) for room in layer.split(" | ")]  # without the commands
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Reference):$", re.MULTILINE)


def sections(docstring: str) -> dict[str, str]:
    """Return the parts of a docstring in Google style; that before the first section is named ""."""
    first, *rest = _SECTION.split(re.sub(r"^>>>.*", "", inspect.cleandoc(docstring), flags=re.MULTILINE | re.DOTALL))
    return {"": first.strip(), **{name: inspect.cleandoc(text) for name, text in zip(rest[::2], rest[1::2])}}


def arguments_of(one: Any) -> str:
    """Return the arguments that the docstring of a class or function of pvae describes."""
    return sections(one.__doc__ or "").get("Args", "") if one.__module__.startswith("pvae") else ""


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [[cell.replace("|", r"\|").replace("$", r"\$") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *lines])


def choices(kind: str) -> Iterator[str]:
    """Yield a table of the posteriors, priors, likelihoods, elbos or networks, and the list of their pages."""
    names = CHOICES[kind]
    rows = [[f"[{name}](made/{kind}/{name}.md)", f"`{said['option']}`", said["take"]] for name, said in names.items()]
    yield table(["name", "option", "when to take it"], rows)
    pages = "\n".join(f"made/{kind}/{name}" for name in names)
    yield f"```{{toctree}}\n:hidden:\n\n{pages}\n```"


def choice(kind: str, name: str) -> Iterator[str]:
    """Yield the page of one of them."""
    said = CHOICES[kind][name]
    one = getattr(importlib.import_module(f"pvae.{said['module']}"), name)
    parts = sections(one.__doc__)
    arguments = next((text for base in (one, *getattr(one, "__mro__", [])) if (text := arguments_of(base))), "")
    yield f"# {name}"
    yield f"`{said['option']}`, in Python `pvae.{said['module']}.{name}`"
    yield parts[""]
    entries = re.findall(r"^(\w+): (.*(?:\n .*)*)", arguments, re.MULTILINE)
    rows = []
    for argument, text in entries:
        symbol, meaning = re.fullmatch(r"(?:([A-Z])\b[.,;]? ?)?(.*)", " ".join(text.split())).groups()
        rows.append([symbol or "", meaning or SYMBOLS[symbol], f"`{argument}`"])
    rows += [[symbol, meaning, where] for symbol, meaning, where in said.get("rows", [])]
    has_symbols = any(symbol for symbol, *_ in rows)
    columns = ["symbol", "meaning", "name in the code"][not has_symbols :]
    yield table(columns, [row[not has_symbols :] for row in rows])
    yield f"**When to take it.** {said['take']}"
    yield f"**What it cannot do.** {said['cannot']}"
    yield f"**Figures:** {said['figures']}"
    yield f"**Tests:** {', '.join(f'`{test}`' for test in said['tests'])}"
    if "Reference" in parts:
        yield f"**Reference:** {' '.join(parts['Reference'].split())}"


def commands() -> Iterator[str]:
    """Yield a section for each command, from its parser."""
    for name in COMMANDS:
        parser = command_of(name).parser()
        usage = re.sub(r"\s+", " ", parser.format_usage()).removeprefix("usage: ") if name != "train" else ""
        yield f"## {name}"
        yield parser.description
        yield f"```\n{usage or 'python -m pvae.train [options]'}\n```"
        for group in parser._action_groups:
            actions = [one for one in group._group_actions if one.help and one.dest != "help"]
            rows = [[f"`{shown(one)}`", _literal(one.help.replace("%%", "%"))] for one in actions]
            if rows:
                yield f"{group.title[0].upper()}{group.title[1:]}:"
                yield table(["name", "meaning"], rows)
        yield f"```\n{parser.epilog}\n```"


def _literal(text: str) -> str:
    """Return a text whose characters are no markup."""
    return text.replace("<", "&lt;").replace("*", r"\*")


def shown(action: argparse.Action) -> str:
    """Return an argument as a user types it."""
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"{action.option_strings[0]}{value}" if action.option_strings else value.strip()


def api() -> Iterator[str]:
    """Yield the public names of `pvae`."""
    yield from (described("pvae", name) for name in sorted(pvae.__all__, key=str.lower))


def room(name: str) -> Iterator[str]:
    """Yield a page of the public names of a room's modules that are not among those of `pvae`."""
    package = importlib.import_module(f"pvae.{name}")
    yield f"# pvae.{name}"
    yield package.__doc__
    known = [getattr(pvae, one) for one in pvae.__all__]
    modules = pkgutil.iter_modules(getattr(package, "__path__", []))
    names = [one.name for one in modules if not one.name.startswith("_")]
    for path in [f"pvae.{name}.{one}" for one in names] or [f"pvae.{name}"]:
        module = importlib.import_module(path)
        if path != f"pvae.{name}":
            yield f"## {path.removeprefix('pvae.')}"
            yield module.__doc__
        public = [one for one in module.__all__ if not any(getattr(module, one) is other for other in known)]
        yield from (described(path, one) for one in public)


def write_pages(_: Any) -> None:
    """Write a page for each room and for each posterior, prior, ..., before Sphinx looks for pages."""
    pages = {f"rooms/{name}": room(name) for name in ROOMS}
    pages |= {f"{kind}/{name}": choice(kind, name) for kind, names in CHOICES.items() for name in names}
    shutil.rmtree(MADE_PAGES, ignore_errors=True)
    for path, parts in pages.items():
        file = MADE_PAGES / f"{path}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"\]\((?!http)", "](../../", "\n\n".join(parts))  # links of choices.toml, from notebooks/
        file.write_text(text, encoding="utf-8")


def write_explorer(app: Any, error: Exception | None) -> None:
    """Write the page of a trained run that `start` shows; the images of the second one need no network."""
    for name in ("fashion-vae", "deep-bayes"):
        with contextlib.suppress(InputError):
            page = explorer_page(Run.open(name))
            (Path(app.outdir) / "_static" / "explore.html").write_text(page, encoding="utf-8")
            return
    text = "<p>The images of the trained runs could not be found or downloaded when this book was built.</p>"
    (Path(app.outdir) / "_static" / "explore.html").write_text(text, encoding="utf-8")


def described(module: str, name: str) -> str:
    """Return the directive that describes a name of a module."""
    one = getattr(importlib.import_module(module), name)
    kind = "autoclass" if inspect.isclass(one) else "autofunction" if inspect.isfunction(one) else "autodata"
    members = "\n   :members:" if kind == "autoclass" else "\n   :no-value:" if kind == "autodata" else ""
    return f"```{{eval-rst}}\n.. {kind}:: {module}.{name}{members}\n```"


def fill(_: Any, page: str, source: list[str]) -> None:
    """Write into a page what is made for it."""
    if MADE in source[0]:
        made = {"api": api, "commands": commands}.get(page, lambda: choices(page))
        source[0] = source[0].replace(MADE, "\n\n".join(made()))


def to_rst(_: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let the equations of a docstring, which are indented, be literal, and characters of its text no markup."""
    if what == "data":  # the docstring of its class
        lines.clear()
    text, section = [], False
    for before, line in zip(["", *lines], lines):
        section = bool(_SECTION.match(line)) or (section and (not line or line.startswith(" ")))
        if line.startswith("    ") and not section and not before:
            text += ["::", ""]
        is_code = (line.startswith("    ") and not section) or line.startswith((">>>", "..."))
        parts = [line] if is_code else line.split("`")
        parts[::2] = [one if is_code else re.sub(r"([*|\\]|_(?!\w))", r"\\\1", one) for one in parts[::2]]
        text.append(re.sub(r"^( *\w+: )([A-Z]\.)", r"\1\\\2", "`".join(parts)))  # K. would begin a list
    lines[:] = text


def is_skipped(_: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples, which the class describes, and what a class has from torch."""
    of_torch = str(getattr(obj, "__module__", "")).startswith("torch")
    return True if of_torch or (obj.__doc__ or "").startswith("Alias for field number") else None


def mathml(translator: Any, node: Any, display: str = "inline") -> None:
    """Write an equation as MathML, which browsers typeset without a script."""
    text = latex2mathml.converter.convert(node.astext(), display=display)
    # What browsers leave out of MathML: variants of letters, and a space between log and p.
    text = re.sub(r'<mi mathvariant="(double-struck|script)">(\w)</mi>', lambda one: _letter(*one.groups()), text)
    text = re.sub("<mi>(log|exp)</mi>(?=<mi)", r'<mi>\1</mi><mspace width="0.167em"/>', text)
    translator.body.append(f'<div style="padding: 0.5em 0">{text}</div>' if display == "block" else text)
    raise SkipNode


def _letter(variant: str, letter: str) -> str:
    name = f"{variant.upper()} CAPITAL {letter}"
    try:
        return f"<mi>{unicodedata.lookup(f'MATHEMATICAL {name}')}</mi>"
    except KeyError:  # some had been in Unicode before
        return f"<mi>{unicodedata.lookup(name)}</mi>"


def setup(app: Any) -> None:
    """Connect what is made to the build."""
    app.add_html_math_renderer("mathml", (mathml, None), (partial(mathml, display="block"), None))
    app.connect("builder-inited", write_pages)
    app.connect("build-finished", write_explorer)
    app.connect("env-get-outdated", lambda *_: [*CHOICES, "api", "commands"])  # the code may have changed
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", to_rst, priority=100)
    app.connect("autodoc-skip-member", is_skipped)
