"""Which item of a request it was that could not be answered."""

import importlib.util
import sys
from pathlib import Path

import pytest

from edgewise.contracts import Request
from edgewise.errors import CloudUnreachableError, RequestError
from edgewise.telemetry import Metrics
from edgewise.wire.asking import Asking

SPEC = importlib.util.spec_from_file_location("edgewise_fake_service", Path(__file__).parent / "fake_service.py")
fakes = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = fakes
SPEC.loader.exec_module(fakes)


class Picky:
    """Refuses an item that is "bad", at once or a moment later, and fails over one that is "worse"."""

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once

    def respond(self, request: Request):
        return self._answer(request) if self.at_once else self._later(request)

    async def _later(self, request: Request):
        return self._answer(request)

    def _answer(self, request: Request):
        if request.inputs == "bad":
            raise RequestError("inputs", "it is bad", "Send a good one.")
        if request.inputs == "worse":
            raise CloudUnreachableError("away")
        return fakes.make_answer(request.id)


def requests(*items: str) -> tuple[Request, ...]:
    return tuple(Request(inputs=item) for item in items)


async def asked(items: tuple[Request, ...], *, at_once: bool):
    (served,) = fakes.served(Picky(at_once=at_once))().values()
    found = Asking(Metrics()).all(served, items, "input")
    return found if isinstance(found, list) else await found


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_item_that_cannot_be_read_is_named(at_once):
    assert len(await asked(requests("good", "good"), at_once=at_once)) == 2
    for items, field in ((("bad",), "input"), (("good", "good", "bad", "good"), "input[2]")):
        with pytest.raises(RequestError) as refused:
            await asked(requests(*items), at_once=at_once)
        assert (refused.value.field, refused.value.problem) == (field, f"{field}: it is bad")


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_not_the_items_fault_is_raised_as_it_is(at_once):
    for items in (("worse",), ("good", "worse")):
        with pytest.raises(CloudUnreachableError, match="away"):
            await asked(requests(*items), at_once=at_once)
