"""Runs the worker from its folder's path, as a package of its own: nothing beside it can be imported."""

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "edgeprune_worker"

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
    importlib.import_module(f"{NAME}.jobs").main()
