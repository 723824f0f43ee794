"""`edgewise` with a cloud service that drafts every step, whatever it measures: a control, not a way to serve.

python always_drafting.py cloud serve CHECKPOINT --draft DRAFT …
"""

from edgewise.cli import main
from edgewise.cloud import text_engine
from edgewise.cloud.worth import Worth


class Always(Worth):
    """Never changes its way."""

    @property
    def drafts(self) -> bool:
        return True

    def observe(self, tokens: int, seconds: float) -> None:
        pass


text_engine.Worth = Always
main()
