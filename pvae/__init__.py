"""Variational autoencoders, distributions first.

The few names that a user needs, of `__init__.pyi`; everything else is imported from its module. They are loaded when
first used, so that `import pvae` costs nothing and changes nothing.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
