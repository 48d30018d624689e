"""Quantization methods by name: each is a file of this package that holds one subclass of ``Method``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from fincompress import runs
from fincompress.quantization.method import Method, Recipe, quiet, require
from fincompress.settings import check_choice

__all__ = ["METHODS", "Method", "Recipe", "method_named", "method_of", "quiet", "require"]

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
METHODS: dict[str, Method] = {found.name: found() for found in Method.__subclasses__()}


def method_named(name: str) -> Method:
    """The method that ``METHOD`` names; raises UserError where there is none."""
    check_choice("METHOD", name, tuple(METHODS))
    return METHODS[name]


def method_of(path: str | Path) -> Method | None:
    """The method that made the checkpoint in the folder ``path``; None where it is no folder or no method's."""
    file = Path(path) / "config.json"
    config = runs.read_json(file).get("quantization_config") if file.exists() else None
    found = [method for method in METHODS.values() if config and method.recognises(config)]
    return max(found, key=lambda method: method.mark is not None, default=None)
