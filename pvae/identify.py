"""The command `python -m pvae.identify`; imported, a module that is called as `pvae.identify` is."""

import sys
from types import ModuleType
from typing import Any

from .cli.command import exit_process
from .cli.identify import main


class _CallableModule(ModuleType):
    """Importing this module sets the name `pvae.identify`, which otherwise is the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .reference.identify import identify

        return identify(*args, **kwargs)


if __name__ == "__main__":
    exit_process(main())
else:
    sys.modules[__name__].__class__ = _CallableModule
