"""Run a command that must refuse its input."""

from __future__ import annotations


def contents(folder):
    """Return the bytes of each file below a folder, and None for each folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refuse(command, arguments, capsys, folder):
    """Run a command that must fail; check that nothing in the folder changed, and return the line it printed."""
    before = contents(folder)
    assert command([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("pvae")
    assert printed.count("\n") == 1, printed
    assert contents(folder) == before
    return printed
