"""A model that guesses along: what it computes, takes back and draws."""

import numpy as np
import pytest

from edgewise.edge.drafting import LIKELIEST, Drafter, DraftModel

SIZE, END = 40, 39
TABLE = np.random.default_rng(0).normal(0, 2, (SIZE, SIZE)).astype(np.float32)
TABLE[:, END] = -50
TABLE[38, END] = 50


class Sequence:
    """What follows depends on all tokens: their sum names the row."""

    def __init__(self, room, log):
        self.room, self.log, self.ids, self.fresh = room, log, [], False

    def append(self, ids):
        assert len(self.ids) + len(ids) <= self.room
        assert len(ids)
        self.log.append(len(ids))
        self.ids += ids.tolist()
        self.fresh = True

    def rewind(self, count):
        assert count <= len(self.ids)
        del self.ids[count:]
        self.fresh = False

    def logits(self):
        assert self.fresh, "there are no logits behind a rewind"
        return TABLE[sum(self.ids) % SIZE]

    def close(self):
        self.ids = None


@pytest.fixture
def log():
    return []


def model(log, max_length=64):
    return DraftModel(
        start=lambda room: Sequence(room, log), read=None, tokenizer=None, ends=frozenset({END}), max_length=max_length
    )


def said(tokens, count):
    tokens, found = list(tokens), []
    while len(found) < count and END not in found:
        found.append(int(TABLE[sum(tokens) % SIZE].argmax()))
        tokens.append(found[-1])
    return found


def test_it_guesses_what_it_would_say(log):
    drafter = Drafter(model(log))
    drafter.append([3, 4])
    assert [guess.token for guess in drafter.draft(4)] == said([3, 4], 4)
    assert all(guess.ids is None for guess in drafter.draft(4))
    assert drafter.tokens == (3, 4)
    assert drafter.draft(0) == []
    assert Drafter(model(log)).draft(4) == []


def test_it_goes_on_from_whatever_stood(log):
    drafter, rng = Drafter(model(log)), np.random.default_rng(1)
    tokens = [3, 4]
    drafter.follow(tokens)
    while len(tokens) < 50:
        guesses = [guess.token for guess in drafter.draft(4)]
        assert guesses == said(tokens, 4)
        stood = int(rng.integers(0, 5))
        tokens += [*guesses[:stood], int(rng.integers(0, 30))]
        drafter.rewind(2)
        drafter.append(tokens[2:])
    # Accepted guesses were computed while they were guessed: little is computed twice.
    assert sum(log) < 2.5 * len(tokens) + 4 * 16


def test_a_prompt_is_computed_but_for_its_last_token(log):
    drafter = Drafter(model(log))
    drafter.follow([1, 2, 3, 4])
    assert log == [3]
    drafter.follow([1, 2, 7, 8])
    assert log == [3, 1]
    drafter.draft(1)
    assert log == [3, 1, 1]
    drafter.draft(1)
    assert log == [3, 1, 1, 1]  # once more, or there would be no logits


def test_a_longer_conversation_gets_more_room(log):
    drafter = Drafter(model(log, max_length=2000))
    tokens = [1] * 250
    drafter.follow(tokens)
    tokens += [2] * 400
    drafter.follow(tokens)
    assert [guess.token for guess in drafter.draft(3)] == said(tokens, 3)
    drafter.close()
    assert [guess.token for guess in drafter.draft(3)] == said(tokens, 3)


def test_it_stops_at_an_end_and_at_its_own_context(log):
    drafter = Drafter(model(log, max_length=10))
    drafter.append([1] * 8)
    assert len(drafter.draft(5)) == 2
    drafter.append([1] * 3)
    assert drafter.draft(5) == []
    drafter.rewind(0)
    drafter.append([38])
    assert [guess.token for guess in drafter.draft(5)] == [END]


def test_draws_follow_the_distribution_that_is_told(log):
    drafter = Drafter(model(log))
    drafter.append([3, 4])
    rng, counts = np.random.default_rng(0), np.zeros(SIZE)
    for _ in range(4000):
        (guess,) = drafter.draft(1, temperature=1.5, random=rng.random)
        counts[guess.token] += 1
    assert len(guess.ids) == len(guess.probabilities) <= LIKELIEST
    assert len(set(guess.ids)) == len(guess.ids)
    told = np.zeros(SIZE)
    told[list(guess.ids)] = np.array(guess.probabilities) / sum(guess.probabilities)
    assert sum(guess.probabilities) == pytest.approx(1, abs=1e-4)
    assert 0.5 * np.abs(counts / 4000 - told).sum() < 0.05
    assert all(probability > 0 for probability in guess.probabilities)
    row = np.exp(TABLE[7] / 1.5 - (TABLE[7] / 1.5).max())
    likely = np.sort(np.array(guess.ids))
    np.testing.assert_allclose(told[likely], row[likely] / row[likely].sum(), atol=1e-5)
