"""Train word-level LSTM language models over very large vocabularies, and hand them on as plain Keras models.

Names are imported when they are first used (the list is `__init__.pyi`), so that `jaxlm --help` does
not wait for JAX.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
