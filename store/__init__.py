"""Everything durable or shared: outbox, answers and what webhooks are owed of them, audit log, spending, exact cache.

Owns bytes on disk and in memory; what is owed, cached or audited is decided elsewhere.
"""

from edgewise.store.cache import MemoryCache
from edgewise.store.sqlite import SqliteStore

__all__ = ["MemoryCache", "SqliteStore"]
