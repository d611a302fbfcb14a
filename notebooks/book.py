"""The pages of the book that are made from the code: a Sphinx extension, which conf.py loads.

A page that has the line MADE gets in its place what stands in docstrings and in the parsers of the commands, so
that nothing is said twice. The pages of posteriors, priors, ... are made of all classes of these families; choices.toml
adds to some of them.
"""

from __future__ import annotations

import argparse
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
from types import ModuleType
from typing import Annotated, Any, get_origin

import pyro
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import pvae
from pvae.__main__ import COMMANDS, command_of
from pvae.config.config import FAMILIES
from pvae.core.options import options_of
from pvae.evaluation.measures import MEASURES
from pvae.explore.page import explorer_page
from pvae.models.columns import KINDS as COLUMN_KINDS
from pvae.models.hierarchy import Inference
from pvae.plotting.figures import PALETTE
from pvae.runs.run import READY_MADE, Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MADE = "*What follows is made from the code when the book is built.*"
CHOICES = tomllib.loads((ROOT / "notebooks" / "choices.toml").read_text(encoding="utf-8"))
KINDS = CHOICES.pop("kinds")
PAGES = ("posteriors", "priors", "likelihoods", "elbos", "networks")
STYLE = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), "#808080") | {"font.size": 8}
MADE_PAGES = ROOT / "notebooks" / "made"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
(LAYERS,) = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
ROOMS = [room for layer in reversed(LAYERS[2:]) for room in layer.split(" | ")]  # without the commands
LOGO = """<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><g transform="rotate(-30 32 32)">
<ellipse cx="32" cy="32" rx="29" ry="18" fill="none" stroke="{}" stroke-width="4"/>
<circle cx="21" cy="32" r="6" fill="{}"/><circle cx="43" cy="32" r="6" fill="{}"/></g></svg>"""
_DOCUMENTS = [ROOT / "README.md", *(path for path in (ROOT / "notebooks").glob("*.[imt]*"))]  # pages, and choices.toml
MENTIONED = {
    word for path in _DOCUMENTS for word in re.findall(r"\w+", re.sub('"image/png": .*', "", path.read_text()))
}
_COMMANDS = {"log", "exp", "tanh", "max", "det", "sum", "prod", "alpha", "beta", "theta", "phi", "pi", "mu"}
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


def classes(kind: str) -> dict[str, tuple[type[Any], str]]:
    """Return the classes of a page, "posteriors" for instance, by their names, each with the option that chooses it."""
    flag = kind.removesuffix("s")
    found = {one.__name__: (one, f"--{flag} {name}") for name, one in FAMILIES[flag].members.items()}
    if kind == "likelihoods":
        for name, column in COLUMN_KINDS.items():
            found.setdefault(column.__name__, (column, f"--likelihood columns, of {name} ones"))
    for name, said in CHOICES.get(kind, {}).items():
        if "module" in said:
            found[name] = getattr(importlib.import_module(said["module"]), name), said["option"]
    return found


def code_of(kind: str, name: str) -> str:
    """Return the code of the page of a class, which its picture is drawn from; "" if it has none."""
    one, _ = classes(kind)[name]
    about = KINDS.get(kind, {})
    said = {"arguments": "", **CHOICES.get(kind, {}).get(name, {})}
    code = said.get("code", "")
    if kind == "elbos" and not code and not one.sums_over_labels:
        latent = "code"
        if one.supports:
            latent = one.supports[0]
        code = about.get(latent, "").format(option=one.name, **said)
    if not code:
        return ""
    return f"{about['before'].format(name=name, module=one.__module__)}\n{code}".strip()


def choices(kind: str) -> Iterator[str]:
    """Yield a table of the posteriors, priors, likelihoods, elbos or networks, and the list of their pages."""
    rows = []
    for name, (one, option) in classes(kind).items():
        link = f"[{name}](made/{kind}/{name}.md)"
        if code_of(kind, name):
            link += f"<br>![{name}](made/{kind}/{name}.svg){{width=130px}}"
        first = re.split(r"(?<=\.)\s", sections(one.__doc__)[""])[0]
        rows.append([link, f"`{option}`", CHOICES.get(kind, {}).get(name, {}).get("take", first)])
    if kind in KINDS:
        yield f"The pictures show {KINDS[kind]['picture']}. The code on each page makes its own."
    yield table(["name", "option", "when to take it"], rows)
    if kind == "likelihoods":
        yield "## Kinds of columns"
        yield "`--columns` names them. [What a column is](values.md#what-a-column-is) says which one is chosen."
        rows = []
        for name, column in COLUMN_KINDS.items():
            first = re.split(r"(?<=\.)\s", sections(column.__doc__)[""])[0]
            rows.append([f"`{name}`", first, f"[{column.__name__}](made/{kind}/{column.__name__}.md)"])
        yield table(["kind", "p(x given z)", "likelihood"], rows)
    if kind == "posteriors":
        yield "## Orders of inference"
        rows = [[f"`--inference {name}`", one.help, one.__doc__] for name, one in Inference.members.items()]
        yield table(["option", "how several layers are drawn", "posterior"], rows)
    pages = "\n".join(f"made/{kind}/{name}" for name in classes(kind))
    yield f"```{{toctree}}\n:hidden:\n\n{pages}\n```"


def arguments_table(one: type[Any], more: list[list[str]]) -> str:
    """Return a table of the arguments of a class: symbol, meaning and name; "" if there are none."""
    described = next((text for base in one.__mro__ if (text := arguments_of(base))), "")
    options = options_of(one)
    rows = []
    for argument, text in re.findall(r"^(\w+): (.*(?:\n .*)*)", described, re.MULTILINE):
        symbol, meaning = re.fullmatch(r"(?:([A-Z])\b[.,;]? ?)?(.*)", " ".join(text.split())).groups()
        rows.append([symbol or "", meaning, f"`{argument}`"])
        if argument in options:
            rows[-1][-1] += f", `{options.pop(argument).flag}`"
    for name, option in options.items():
        meaning = _literal(option.help.format(choices=", ".join(option.choices)))
        rows.append(["", meaning, f"`{name}`, `{option.flag}`"])
    rows += [[symbol, meaning, where] for symbol, meaning, where in more]
    if not rows:
        return ""
    has_symbols = any(symbol for symbol, *_ in rows)
    titles = ["symbol", "meaning", "name in the code"][not has_symbols :]
    return table(titles, [row[not has_symbols :] for row in rows])


def choice(kind: str, name: str) -> Iterator[str]:
    """Yield the page of one of them: its docstring, and what choices.toml says."""
    one, option = classes(kind)[name]
    said = CHOICES.get(kind, {}).get(name, {})
    parts = sections(one.__doc__)
    yield f"# {name}"
    yield f"`{option}`, in Python `{one.__module__}.{name}`"
    yield re.sub("^ {4}(.*)", lambda line: f"$${typeset(line[1])}$$\n", parts[""], flags=re.MULTILINE)
    yield arguments_table(one, said.get("rows", []))
    if "take" in said:
        yield f"**When to take it.** {said['take']}"
        yield f"**When not to take it.** {said['avoid']}"
    code = code_of(kind, name)
    if code:
        yield f"```python\n{code}\n```"
        draw(code, MADE_PAGES / kind / f"{name}.svg")
        yield f"![{name}](made/{kind}/{name}.svg)"
        yield f"The picture shows {said.get('picture', KINDS[kind]['picture'])}."
    if "figures" in said:
        yield f"**Figures:** {said['figures']}"
    if "Reference" in parts:
        yield f"**Reference:** {' '.join(parts['Reference'].split())}"


def _word(found: re.Match[str]) -> str:
    """Return a word of an equation as TeX, with the spaces beside it."""
    before, word, after = (part.replace(" ", r"\ ") for part in found.groups(default=""))
    return f"{before}\\{word} {after}" if word in _COMMANDS else f"{before}\\mathrm{{{word}}}{after}"


TEX = {  # what is replaced in an equation of a docstring, in this order
    r"log_(?=[a-z]{2})": "log ",
    r"\bd/d ?(\w+)": r"\\frac{d}{d \1}",
    r"\^\(([^()]*)\)": r"^{\1}",
    r"\^(-?\w+)": r"^{\1}",
    r"_(\w+)": r"_{\1}",
    r"\binf\b": r"\\infty",
    r"((?<=[\w})]) )?(?<![{\\\w])([A-Za-z]{2,})( (?=\w))?": _word,
    r"\((\w+)/(\w+)\)": r"\\frac{\1}{\2}",
    r"\bE(?=_| \[)": r"\\mathbb{E}",
    r"\|\|": r"\\,\\|\\,",
    r" \| ": r"\\mid ",
    "<=": r"\\le ",
    "!=": r"\\ne ",
    "~": r"\\sim ",
    " {3,}": r"\\quad ",
}


def typeset(equation: str) -> str:
    """Return an equation of a docstring as TeX."""
    for pattern, tex in TEX.items():
        equation = re.sub(pattern, tex, equation)
    return equation


def draw(code: str, path: Path) -> None:
    """Run the code of a page, and draw the densities, the estimates of a gradient or the draws that it leaves."""
    made: dict[str, Any] = {}
    with torch.random.fork_rng(), pyro.get_param_store().scope(), rc_context(STYLE):
        torch.manual_seed(0)
        exec(compile(code, path.stem, "exec"), made)
        axes = Figure(figsize=(2.1, 2.1), layout="constrained").add_subplot()
        if "density" in made:
            for colour, density in zip(PALETTE, made["density"].detach().T):
                axes.plot(made["x"], density, "o" if len(made["x"]) < 10 else "-", color=colour)
            axes.set(xlabel="x", ylabel="p(x | z)", ylim=(0, None))
        elif "gradient" in made:
            axes.hist(made["gradient"][:, 0].clamp(-6, 4), bins=50, range=(-6, 4), color=PALETTE[0])
            axes.set(xlabel="gradient by loc", ylabel="estimates", yticks=[])
        else:
            name = "z" if "z" in made else "x"
            axes.scatter(*made[name].detach().flatten(0, -2)[:, :2].T, s=3, color=PALETTE[0], alpha=0.6, linewidths=0)
            axes.set(xlabel=f"{name}_1", ylabel=f"{name}_2")
            axes.axis("equal")
        axes.figure.savefig(path, transparent=True)


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


def measures() -> Iterator[str]:
    """Yield a section for each measure of `pvae evaluate`, by its key in `evaluation.json`."""
    for key, measure in MEASURES.items():
        yield f"## {key}"
        if measure.request:
            yield f"`--{measure.request.name} {measure.request.metavar}`: {_literal(measure.request.help)}"
        yield described(measure.__module__, measure.__name__)


def room(name: str) -> Iterator[str]:
    """Yield a page of the public names of a room's modules that are not among those of `pvae`."""
    package = importlib.import_module(f"pvae.{name}")
    if name in ("core", "compile"):  # helpers of the other rooms
        yield "---\nnosearch: true\n---"
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
        public = [one for one in public_names(module) if not any(getattr(module, one) is other for other in known)]
        yield from (described(path, one) for one in public)


def public_names(module: ModuleType) -> list[str]:
    """Return `__all__` without types of options, or the functions and classes of a module that has none."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if get_origin(getattr(module, name)) is not Annotated]
    found = []
    for name, one in vars(module).items():
        is_own = getattr(one, "__module__", "") == module.__name__
        if is_own and not name.startswith("_") and (inspect.isfunction(one) or inspect.isclass(one)):
            found.append(name)
    return found


def write_pages(*_: Any) -> None:
    """Write a page for each room and for each posterior, prior, ..., before Sphinx looks for pages."""
    pages = {f"rooms/{name}": room(name) for name in ROOMS}
    pages |= {f"{kind}/{name}": choice(kind, name) for kind in PAGES for name in classes(kind)}
    shutil.rmtree(MADE_PAGES, ignore_errors=True)
    MADE_PAGES.mkdir()
    (MADE_PAGES / "logo.svg").write_text(LOGO.format(*PALETTE), encoding="utf-8")
    for path, parts in pages.items():
        file = MADE_PAGES / f"{path}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"\]\((?!http)", "](../../", "\n\n".join(parts))  # links of choices.toml, from notebooks/
        file.write_text(text, encoding="utf-8")


def write_explorer(app: Any, error: Exception | None) -> None:
    """Write the pages of the two runs that come with pvae; the index shows the first one."""
    for name in READY_MADE if error is None else ():
        (Path(app.outdir) / f"explore-{name}.html").write_text(explorer_page(Run.open(name)), encoding="utf-8")


def add_download(_: Any, page: str, __: str, context: dict[str, Any], doctree: Any) -> None:
    """Put a link below the title of a notebook, to download it."""
    if context.get("sourcename", "").endswith(".ipynb"):
        link = f'</h1><p><a href="_sources/{context["sourcename"]}" download>Download the notebook</a></p>'
        context["body"] = context["body"].replace("</h1>", link, 1)


def add_captions(app: Any, doctree: Any) -> None:
    """Number the pictures of a page that stand alone, and write below each what it shows: its alternative text."""
    from docutils import nodes

    if app.env.docname.startswith(("made/", "pictures")):  # whose pictures have the words of a title
        return
    number = 0
    for image in [*doctree.findall(nodes.image)]:
        around = image.parent
        is_alone = isinstance(around, nodes.paragraph | nodes.container) and len(around) == 1
        if not is_alone or isinstance(around.parent, nodes.entry) or not image.get("alt"):
            continue
        number += 1
        text = image["alt"]
        caption = nodes.caption("", f"Figure {number}. {text[0].upper()}{text[1:]}.")
        figure = nodes.figure("", image.deepcopy(), caption, ids=[f"figure-{number}"])
        if isinstance(around, nodes.paragraph):
            image = around
        image.parent.replace(image, figure)


def described(module: str, name: str) -> str:
    """Return the directive that describes a name of a module."""
    one = getattr(importlib.import_module(module), name)
    kind = "autoclass" if inspect.isclass(one) else "autofunction" if inspect.isfunction(one) else "autodata"
    options = "\n   :members:" if kind == "autoclass" else "\n   :no-value:" if kind == "autodata" else ""
    if kind != "autoclass" and name not in MENTIONED:
        options += "\n   :no-index:"  # a helper
    return f"```{{eval-rst}}\n.. {kind}:: {module}.{name}{options}\n```"


def fill(_: Any, page: str, source: list[str]) -> None:
    """Write into a page what is made for it."""
    if MADE in source[0]:
        made = {"api": api, "commands": commands, "measures": measures}.get(page, lambda: choices(page))
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
    """Leave out fields of named tuples, which the class describes, and what a class has from torch or scikit-learn."""
    of_others = str(getattr(obj, "__module__", "")).startswith("torch") or name.endswith("_request")
    return True if of_others or (obj.__doc__ or "").startswith("Alias for field number") else None


def mathml(translator: Any, node: Any, display: str = "inline") -> None:
    """Write an equation as MathML, which browsers typeset without a script."""
    import latex2mathml.converter
    from docutils.nodes import SkipNode

    text = latex2mathml.converter.convert(node.astext(), display=display)
    # What browsers leave out of MathML: variants of letters, and a space between log and p.
    text = re.sub(r'<mi mathvariant="(double-struck|script)">(\w)</mi>', lambda one: _letter(*one.groups()), text)
    text = re.sub("<mi>(log|exp)</mi>(?=<mi)", r'<mi>\1</mi><mspace width="0.167em"/>', text)
    translator.body.append(
        f'<div style="padding: 0.5em 0; overflow-x: auto">{text}</div>' if display == "block" else text
    )
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
    app.connect("config-inited", write_pages, priority=100)  # before the logo is looked for
    app.connect("build-finished", write_explorer)
    app.connect("env-get-outdated", lambda *_: [*PAGES, "api", "commands"])  # the code may have changed
    app.connect("source-read", fill)
    app.connect("doctree-read", add_captions)
    app.connect("html-page-context", add_download)
    app.connect("autodoc-process-docstring", to_rst, priority=100)
    app.connect("autodoc-skip-member", is_skipped)
