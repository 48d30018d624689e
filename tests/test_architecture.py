"""The package's rules on imports: no circles, and rooms that do without others."""

import ast
from graphlib import TopologicalSorter

from scripts import REPOSITORY

FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (REPOSITORY / "fincompress").rglob("*.py")
}


def imports(module):
    """Modules, of this package or not, that a module imports anywhere in its code."""
    tree = ast.parse(FILES[module].read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            imported |= names & FILES.keys() or {node.module}
    packages = {name.rpartition(".")[0] for name in imported & FILES.keys()}  # whose __init__ is run first
    return imported | {name for name in packages if not module.startswith(name)}


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({module: imports(module) & FILES.keys() for module in FILES}).prepare()


def test_finqa_does_without_torch_and_depth_without_runs_and_reports():
    for module in FILES:
        if module.startswith("fincompress.finqa"):
            assert not {name.partition(".")[0] for name in imports(module)} & {"torch", "transformers"}
        if module.startswith("fincompress.depth"):
            used = imports(module)
            assert not [name for name in used if name.startswith(("fincompress.runs", "fincompress.report"))]


def test_scripts_do_not_import_each_other():
    scripts = {path.stem: path for path in REPOSITORY.glob("*.py")}
    for name, path in scripts.items():
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        used = {part.name for node in nodes if isinstance(node, ast.Import) for part in node.names}
        used |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not used & (scripts.keys() - {name}), path
