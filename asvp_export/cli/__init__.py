"""The command line: parses and prints, and holds no logic."""

from asvp_export.cli.main import cli, main

__all__ = ["cli", "main"]
