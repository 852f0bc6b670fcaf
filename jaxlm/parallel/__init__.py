"""Training on several devices and processes: the mesh, collectives, and the decisions of process 0.

Imports: the modules at the root of `jaxlm`.
"""
