"""Installed as ``mmdd.tasks``; see the annotated tree in CONTRIBUTING.md."""

if not __name__.startswith("mmdd."):
    # Imported from the repository root, the same files would become a second set of modules.
    raise ImportError("import mmdd.tasks instead (install the package: pip install -e .)")
