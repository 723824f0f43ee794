"""What serving changes in its process, and gives back."""

import gc

from edgewise.config import Config
from edgewise.wiring import server


def test_a_server_gives_its_host_the_garbage_collector_back(monkeypatch):
    seen = []

    def serve(app, *, on_bound, **options):
        on_bound("127.0.0.1", 1)
        seen.append((gc.get_threshold(), gc.get_freeze_count() > 0))

    monkeypatch.setattr(server, "_server_of", lambda config: serve)
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    server.serve_app(None, Config(), lambda host, port: None)
    assert seen == [((*before[:2], 50), True)]
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)
