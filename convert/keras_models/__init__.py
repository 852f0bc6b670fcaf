"""Keras models, in files and in memory: reading, building and writing them.

Imports: the root, `weights` and `checks`.
"""

from convert.packages import import_optional

import_optional("keras", "keras")
