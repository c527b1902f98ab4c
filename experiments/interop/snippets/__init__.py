"""Snippets of docs/interop.md, as they are run by the checks."""
