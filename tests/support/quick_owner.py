"""A cache owner that is idle after two seconds."""

from orchestrator.pool import cache_owner


class QuickOwner(cache_owner.CacheOwner):
    """Its clock is set in its own process, before anything reads it."""

    def __init__(self, path: str, max_bytes: int) -> None:
        cache_owner.FLUSH_S, cache_owner.IDLE_S = 0.5, 2.0
        super().__init__(path, max_bytes)
