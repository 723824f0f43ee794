"""Everything durable or shared: the outbox, answers for later pick-up, the audit log, spending, and the exact cache.

Owns bytes on disk and in memory; what is owed, cached or audited is decided elsewhere.
"""

from edgewise.store.cache import MemoryCache
from edgewise.store.sqlite import SqliteStore

__all__ = ["MemoryCache", "SqliteStore"]
