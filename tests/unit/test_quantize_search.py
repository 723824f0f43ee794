"""A search keeps to its time, tries nothing twice, resumes where it was killed, and its front is a front."""

import hashlib
import shutil
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgewise.bundle import Bundle
from edgewise.quantize.bench import Shelf
from edgewise.quantize.candidates import Made
from edgewise.quantize.progress import NullProgress
from edgewise.quantize.recipes import RECIPES, Choice, parse_choices
from edgewise.quantize.search import STALLED, Budget, Ledger, Tried, explore, finalists
from edgewise.quantize.space import Space, free_options

SEARCHED = {name: RECIPES[name] for name in ("int8_dynamic", "int4_matmul", "int8_embed4")}
SPACE = Space(SEARCHED)


class Clock:
    """Goes on by a fixed time with each look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Bench:
    """Figures that depend on the candidate alone, and a record of what was looked at."""

    def __init__(self, clock: Clock, *, cost: float = 1.0, killed_after: int | None = None) -> None:
        self.clock = clock
        self.cost = cost
        self.killed_after = killed_after
        self.looked: list[str] = []

    def __call__(self, choice: Choice) -> Tried:
        if self.killed_after is not None and len(self.looked) >= self.killed_after:
            raise KeyboardInterrupt
        self.looked.append(choice.id)
        self.clock.seconds += self.cost
        digest = hashlib.sha256(choice.id.encode()).digest()
        return Tried(
            id=choice.id,
            spelling=choice.id,
            parameters=SPACE.parameters(choice),
            size_bytes=digest[0] + 1,
            p50_ratio=(digest[1] + 1) / 256,
            drop=digest[2] / 2560,
            problem="it failed" if digest[3] % 8 == 0 else "",
            seconds=self.cost,
        )


def search(bench: Bench, *, seconds: float, known=(), first=(), finishing: Callable = lambda tried: 0.0, seed=3):
    budget = Budget(seconds=seconds, finishing=finishing, now=bench.clock)
    return explore(SPACE, bench, first=first, known=known, seed=seed, budget=budget, progress=NullProgress())


def test_it_begins_with_what_it_is_told_to_and_tries_nothing_twice():
    bench = Bench(Clock())
    first = parse_choices(RECIPES, ["int4_matmul:block_size=128", "int8_embed4"])
    tried = search(bench, seconds=20, first=first)
    assert bench.looked[:2] == [choice.id for choice in first]
    assert len(bench.looked) == len(set(bench.looked)) == len(tried)


def test_it_stops_before_another_candidate_and_the_last_measurement_would_exceed_the_time():
    bench = Bench(Clock(), cost=2.0)
    search(bench, seconds=20, finishing=lambda tried: 5.0)
    assert bench.clock.seconds == 14  # an eighth would end at 16 + 5


def test_without_any_time_one_candidate_is_still_tried():
    bench = Bench(Clock(), cost=100.0)
    assert len(search(bench, seconds=1)) == 1


def test_it_ends_where_nothing_is_left_to_try():
    space = Space({"int8_dynamic": RECIPES["int8_dynamic"]})
    bench = Bench(Clock(), cost=0.001)
    budget = Budget(seconds=1e9, finishing=lambda tried: 0.0, now=bench.clock)
    tried = explore(space, bench, first=(), known=(), seed=0, budget=budget, progress=NullProgress())
    count = 1
    for kind in free_options(RECIPES["int8_dynamic"]).values():
        count *= 2 if not hasattr(kind, "values") else len(kind.values)
    assert count - 2 <= len(tried) <= count
    assert count < STALLED


def test_a_resumed_search_never_repeats_what_was_kept(tmp_path):
    ledger = Ledger(tmp_path / "tried")
    bench = Bench(Clock(), killed_after=5)

    def look(choice: Choice) -> Tried:
        found = bench(choice)
        ledger.keep(found)
        return found

    budget = Budget(seconds=1e9, finishing=lambda tried: 0.0, now=bench.clock)
    with pytest.raises(KeyboardInterrupt):
        explore(SPACE, look, first=(), known=(), seed=1, budget=budget, progress=NullProgress())
    kept = Ledger(tmp_path / "tried").read()
    assert [found.id for found in kept] == bench.looked

    again = Bench(Clock())
    tried = search(again, seconds=6, known=kept, seed=1)
    assert tried[:5] == kept
    assert not set(again.looked) & set(bench.looked)
    assert again.looked


def test_a_torn_file_of_the_ledger_counts_as_not_there(tmp_path):
    ledger = Ledger(tmp_path)
    bench = Bench(Clock())
    found = bench(parse_choices(RECIPES, ["int8_dynamic"])[0])
    ledger.keep(found)
    (tmp_path / "00001.json").write_bytes(b'{"id": "int4')
    assert ledger.read() == (found,)


def test_the_same_seed_proposes_the_same_candidates():
    one, other = Bench(Clock()), Bench(Clock())
    search(one, seconds=15)
    search(other, seconds=15)
    assert one.looked == other.looked


def test_guided_by_what_it_saw_it_finds_better_candidates_than_the_first_ones():
    """The best of this space is rare; the sampler must lean towards it."""

    class Sloped(Bench):
        def __call__(self, choice: Choice) -> Tried:
            found = super().__call__(choice)
            options = choice.plain_options()
            size = 100 * ["int4_matmul", "int8_embed4", "int8_dynamic"].index(choice.recipe.name) + 1
            size += int(options.get("block_size", 0))
            return Tried(
                id=found.id, spelling="", parameters=found.parameters, size_bytes=size, p50_ratio=1.0, seconds=1
            )

    bench = Sloped(Clock())
    search(bench, seconds=32)
    late = bench.looked[-12:]
    assert sum(name.startswith("int4_matmul") for name in late) >= 6


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=12)
)
def test_finalists_are_undominated(rows):
    tried = [
        Tried(
            id=str(i), spelling="", parameters={}, size_bytes=a, p50_ratio=b, drop=c / 100, problem="no" if bad else ""
        )
        for i, (a, b, c, bad) in enumerate(rows)
    ]
    usable = {found.id: found.objectives for found in tried if not found.problem}
    for name in finalists(tried):
        own = usable[name]
        assert not any(
            other != own and all(x <= y for x, y in zip(other, own, strict=True)) for other in usable.values()
        )
    assert bool(finalists(tried)) == bool(usable)


class Picks:
    """A trial that draws what hypothesis says."""

    def __init__(self, draw) -> None:
        self.draw = draw

    def suggest_categorical(self, name, choices):
        return self.draw(st.sampled_from(list(choices)))

    def suggest_float(self, name, low, high, *, step=None):
        return low + step * self.draw(st.integers(0, round((high - low) / step)))


class Replays:
    """A trial that answers with known parameters."""

    def __init__(self, parameters) -> None:
        self.parameters = parameters

    def suggest_categorical(self, name, choices):
        assert self.parameters[name] in choices
        return self.parameters[name]

    def suggest_float(self, name, low, high, *, step=None):
        assert low <= self.parameters[name] <= high
        return self.parameters[name]


@settings(max_examples=60)
@given(st.data())
def test_a_candidate_comes_back_from_its_parameters(data):
    space = Space({name: recipe for name, recipe in RECIPES.items() if name != "fp32"})
    choice = space.suggest(Picks(data.draw))
    assume(choice is not None)
    assert space.suggest(Replays(space.parameters(choice))) == choice
    assert space.has(choice)


def test_a_named_value_that_is_not_searched_is_not_replaced_by_the_default():
    """An option without a few values or limits is no dimension: a candidate that sets it is none of the space."""
    space = Space({"int8_static": RECIPES["int8_static"]})
    other, usual = parse_choices(
        RECIPES, ["int8_static:method=percentile:percentile=99.9", "int8_static:method=percentile"]
    )
    assert space.has(usual)
    assert not space.has(other)


def test_a_record_without_its_whole_bundle_counts_as_nothing(tmp_path, tiny_text_bundle):
    (choice,) = parse_choices(RECIPES, ["int8_dynamic"])
    whole = Bundle.open(tiny_text_bundle)
    Shelf(tmp_path).keep(choice, Made(model_digest=whole.model_digest))
    assert Shelf(tmp_path).find(choice) is None
    shutil.copytree(tiny_text_bundle, tmp_path / "candidates" / choice.id)
    assert Shelf(tmp_path).find(choice).made.model_digest == whole.model_digest
    next((tmp_path / "candidates" / choice.id / "blobs" / "sha256").iterdir()).unlink()
    assert Shelf(tmp_path).find(choice) is None


def test_what_a_killed_process_left_undone_is_tried_again(tmp_path):
    (choice,) = parse_choices(RECIPES, ["int8_dynamic"])
    kept = Shelf(tmp_path).keep(choice, Made(state="failed", problem="killed by signal 9", lasting=False))
    assert kept.made.problem == "killed by signal 9"
    assert Shelf(tmp_path).find(choice) is None
    Shelf(tmp_path).keep(choice, Made(state="failed", problem="no such operator"))
    assert Shelf(tmp_path).find(choice).made.problem == "no such operator"
