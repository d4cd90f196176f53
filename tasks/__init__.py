"""Instruction tasks, one module a dataset family; installed as `flanjax.tasks`.

Each module has a `register(**options)` that puts its seqio Tasks and Mixtures into the registry.
"""
