"""What the modules of the sandbox import: no other part of grokflask, and not each other in a circle."""

import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grokflask.sandbox

PACKAGE = Path(grokflask.sandbox.__file__).parent
OWN = "grokflask.sandbox"


def list_imports(module: Path) -> list[str]:
    """Every module that a source file names in an import, also inside of functions and for type checking."""
    found = re.findall(r"^\s*(?:from|import) ([\w.]+)(?: import (\w+))?", module.read_text(), re.MULTILINE)
    return [f"{source}.{name}" if source == OWN and name else source for source, name in found]


def test_it_stands_alone() -> None:
    """The package imports nothing else of grokflask, and nothing third-party but msgspec."""
    for module in PACKAGE.glob("*.py"):
        for name in list_imports(module):
            top = name.partition(".")[0]
            assert name.startswith(OWN) or top == "msgspec" or top in sys.stdlib_module_names


def test_no_module_imports_itself_in_a_circle() -> None:
    """TopologicalSorter raises CycleError, which names the circle."""
    graph = {
        f"{OWN}.{module.stem}": [name for name in list_imports(module) if name.startswith(OWN)]
        for module in PACKAGE.glob("*.py")
    }
    assert f"{OWN}.handler" in graph[f"{OWN}.server"]
    TopologicalSorter(graph).prepare()
