"""Keras models, in files and in memory: reading, building and writing them.

Imports: the root, `weights` and `checks`.
"""

from jaxlm.errors import require_packages

require_packages("keras", "keras")
