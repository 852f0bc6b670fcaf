"""Devices and processes that train one model together: the mesh, its collectives, and decisions of process 0.

Imports: the modules at the root of `jaxlm`.
"""
