"""Many trials of one job: `orchestrator.search` runs a search.

Package and function have one name, so the package itself can be called. Nothing heavy is imported
before it is.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Search
    from .run import SearchResult


class _Callable(ModuleType):
    def __call__(self, search: "Search", **options: Any) -> "SearchResult":
        """See `run.run_search`; `load.load_search` reads a search's file."""
        from .run import run_search

        return run_search(search, **options)


sys.modules[__name__].__class__ = _Callable
