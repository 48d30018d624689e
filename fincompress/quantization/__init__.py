"""Quantization methods by name: each is a subclass of ``Method`` in a file of this package."""

import importlib
import pkgutil
from pathlib import Path

from fincompress import runs
from fincompress.quantization.method import Method, Recipe, quiet, require

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
METHODS: dict[str, Method] = {method.name: method() for method in Method.__subclasses__()}


def method_of(path: str | Path) -> Method | None:
    """The method that made the checkpoint in the folder ``path``; None where it is no folder or no method's."""
    file = Path(path) / "config.json"
    config = runs.read_json(file).get("quantization_config", {}) if file.exists() else {}
    marks = [None, *(name for name, value in config.get("meta", {}).items() if value)]
    quant_method = config.get("quant_method")
    methods = [method for method in METHODS.values() if method.quant_method == quant_method and method.mark in marks]
    return max(methods, key=lambda method: method.mark is not None, default=None)
