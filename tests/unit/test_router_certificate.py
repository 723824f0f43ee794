"""The certificate's arithmetic against scipy, against brute force, and against its own promise."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from edgewise.contracts import Groups, Reference
from edgewise.errors import CertificateError, ConfigError, TooFewItemsError
from edgewise.router import certificate as certificates
from edgewise.router.certificate import allowed_disagreements, certify, items_needed


def brute_force_threshold(scores, disagree, k):
    """The lowest candidate threshold above which at most k items disagree, found by trying all of them."""
    candidates = sorted({-math.inf, *(score for score in scores if not math.isnan(score))})
    lost = [sum(bool(d) and s > t for s, d in zip(scores, disagree, strict=True)) for t in candidates]
    return next(t for t, count in zip(candidates, lost, strict=True) if count <= k)


@pytest.mark.parametrize(("n", "k"), [(299, 0), (300, 0), (500, 1), (1000, 4), (2000, 12)])
def test_allowed_disagreements_at_one_and_five_percent(n, k):
    assert allowed_disagreements(n, 0.01, 0.05) == k


@pytest.mark.parametrize(("alpha", "delta", "n"), [(0.01, 0.05, 299), (0.005, 0.05, 598), (0.5, 0.5, 1)])
def test_items_needed(alpha, delta, n):
    assert items_needed(alpha, delta) == n


@given(n=st.integers(1, 3000), alpha=st.floats(0.001, 0.9), delta=st.floats(0.001, 0.9))
@settings(deadline=None)
def test_allowed_disagreements_agree_with_scipy(n, alpha, delta):
    k = allowed_disagreements(n, alpha, delta)
    tolerance = 1e-9 * delta
    assert k < 0 or binom.cdf(k, n, alpha) <= delta + tolerance
    assert k == n or binom.cdf(k + 1, n, alpha) > delta - tolerance


@given(n=st.integers(1, 40), numerator=st.integers(1, 7))
def test_exact_ties_with_delta_count_as_allowed(n, numerator):
    """With alpha = 1/2 every cdf value is a dyadic fraction, so delta can equal one of them exactly."""
    k = min(numerator, n - 1)
    delta = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert allowed_disagreements(n, 0.5, delta) == k


scores_strategy = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf]), st.floats(0, 1))


@given(items=st.lists(st.tuples(scores_strategy, st.booleans()), min_size=60, max_size=200))
@settings(deadline=None)
def test_threshold_equals_brute_force_with_ties_nan_and_infinities(items):
    scores, disagree = zip(*items, strict=True)
    bound = certify(scores, disagree, alpha=0.05, delta=0.05)
    assert bound.threshold == brute_force_threshold(scores, disagree, bound.k)
    assert bound.local_share == sum(score > bound.threshold for score in scores) / len(scores)


@given(items=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=100, max_size=200))
def test_a_larger_alpha_never_raises_the_threshold(items):
    scores, disagree = zip(*items, strict=True)
    tight = certify(scores, disagree, alpha=0.05, delta=0.05)
    loose = certify(scores, disagree, alpha=0.2, delta=0.05)
    assert loose.threshold <= tight.threshold


def test_all_agree_answers_everything_locally():
    bound = certify(np.linspace(0, 1, 400), np.zeros(400, bool), alpha=0.01, delta=0.05)
    assert bound.threshold == -math.inf
    assert bound.local_share == 1.0


def test_none_agree_answers_almost_nothing_locally():
    bound = certify(np.linspace(0, 1, 500), np.ones(500, bool), alpha=0.01, delta=0.05)
    assert bound.local_share == 1 / 500 == bound.k / bound.n


def test_constant_scores_with_too_many_disagreements_answer_nothing_locally():
    bound = certify(np.full(500, 0.5), np.arange(500) < 50, alpha=0.01, delta=0.05)
    assert bound.local_share == 0.0


def test_nan_scores_escalate_and_count_in_n():
    scores = np.concatenate([np.full(300, np.nan), np.ones(50)])
    bound = certify(scores, np.concatenate([np.ones(300), np.zeros(50)]), alpha=0.01, delta=0.05)
    assert (bound.n, bound.local_share) == (350, 50 / 350)


def test_too_few_items_are_refused_with_the_number_needed():
    with pytest.raises(TooFewItemsError, match="299 are needed") as error:
        certify(np.ones(298), np.zeros(298), alpha=0.01, delta=0.05)
    assert error.value.needed == 299


@pytest.mark.parametrize("name", ["alpha", "delta"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_alpha_and_delta_outside_the_open_interval_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        certify([1.0], [0], **{"alpha": 0.5, "delta": 0.5, name: value})


@pytest.mark.parametrize(
    ("scores", "disagree"), [([1.0, 2.0], [0]), ([[1.0]], [[0]]), ([1.0] * 9, [2] * 9), ([1.0] * 9, [0.5] * 9)]
)
def test_arrays_that_do_not_fit_are_refused(scores, disagree):
    with pytest.raises(CertificateError):
        certify(scores, disagree, alpha=0.5, delta=0.5)


def test_the_promise_holds_over_many_calibration_sets():
    """Risk on the whole pool exceeds alpha in at most delta of the sets drawn from it with replacement."""
    generator = np.random.default_rng(7)
    scores = np.round(generator.random(5000), 2)  # rounded, so that ties are common
    disagree = generator.random(5000) < 0.3 * (1 - scores)
    alpha, delta, sets = 0.05, 0.1, 400
    violations = 0
    for _ in range(sets):
        drawn = generator.integers(0, 5000, size=300)
        bound = certify(scores[drawn], disagree[drawn], alpha=alpha, delta=delta)
        violations += bool(np.mean((scores > bound.threshold) & disagree) > alpha)
    assert violations <= binom.ppf(0.999, sets, delta)
    assert violations > 0, "a bound that never fails would be wasting local answers"


@given(n=st.integers(1, 3000), alpha=st.floats(0.001, 0.5))
def test_unsurprising_violations_are_the_95_percent_quantile(n, alpha):
    assert abs(certificates.unsurprising_violations(n, alpha) - binom.ppf(0.95, n, alpha)) <= 1
    assert binom.cdf(certificates.unsurprising_violations(n, alpha), n, alpha) >= 0.95 - 1e-9


def issued(bound):
    return certificates.issue(
        bound,
        model_digest="sha256:aa",
        signal="margin",
        data_digest="bb",
        reference=Reference("cloud", "sha256:cc"),
        created="2026-01-01T00:00:00Z",
        runtime="onnxruntime 1.31.1",
        isa="x86-64-avx2",
    )


@pytest.mark.parametrize("disagreeing", [0, 30, 400])
def test_certificates_survive_their_text_form(disagreeing):
    bound = certify(np.full(400, 0.5), np.arange(400) < disagreeing, alpha=0.01, delta=0.05)
    certificate = issued(bound)
    assert certificates.decode(certificates.encode(certificate)) == certificate


def test_a_changed_certificate_is_refused():
    text = certificates.encode(issued(certify(np.ones(400), np.zeros(400), alpha=0.02, delta=0.05)))
    with pytest.raises(CertificateError, match="changed after it was issued"):
        certificates.decode(text.replace(b"0.02", b"0.01"))


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"nonsense", b'{"bound": {"threshold": "x"}}', b'"\xff"'])
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(CertificateError, match="edgewise certify"):
        certificates.decode(text)


def test_a_certificate_of_another_model_is_refused():
    certificate = issued(certify(np.ones(400), np.zeros(400), alpha=0.01, delta=0.05))
    certificates.check_model(certificate, "sha256:aa")
    with pytest.raises(CertificateError, match="sha256:dd"):
        certificates.check_model(certificate, "sha256:dd")


def test_every_field_is_covered_by_the_id():
    certificate = issued(certify(np.ones(400), np.zeros(400), alpha=0.01, delta=0.05))
    other = msgspec.structs.replace(certificate, reference=Reference("cloud", "sha256:dd"))
    with pytest.raises(CertificateError):
        certificates.decode(certificates.encode(other))


def test_tiny_bounds_are_answered_at_once():
    with pytest.raises(TooFewItemsError) as error:
        certify(np.ones(10), np.zeros(10), alpha=1e-9, delta=0.05)
    assert error.value.needed == pytest.approx(2.9957e9, rel=1e-4)


@pytest.mark.parametrize("value", [1e-320, 1 - 1e-16])
def test_bounds_beyond_arithmetic_are_refused(value):
    with pytest.raises(ConfigError, match="alpha"):
        certify(np.ones(10), np.zeros(10), alpha=value, delta=0.05)


def test_numpy_numbers_are_plain_numbers_in_the_bound():
    bound = certify(np.ones(400), np.zeros(400), alpha=np.float32(0.05), delta=np.float64(0.05))
    assert type(bound.alpha) is float
    assert certificates.decode(certificates.encode(issued(bound))).bound == bound


@pytest.mark.parametrize("field", ["alpha", "delta", "n", "k", "local_share", "threshold"])
def test_an_impossible_bound_is_no_certificate(field):
    bound = certify(np.ones(400), np.zeros(400), alpha=0.05, delta=0.05)
    impossible = {"alpha": 5.0, "delta": -1.0, "n": -1, "k": 401, "local_share": 2.0, "threshold": math.nan}
    forged = issued(msgspec.structs.replace(bound, **{field: impossible[field]}))
    with pytest.raises(CertificateError, match="edgewise certify"):
        certificates.decode(certificates.encode(forged))


def test_nesting_and_numbers_without_end_are_no_certificate():
    for text in (b"[" * 100_000, b'{"bound": {"threshold": ' + b"9" * 5000 + b"}}"):
        with pytest.raises(CertificateError, match="edgewise certify"):
            certificates.decode(text)


def test_a_certificate_of_an_unknown_target_is_refused():
    bound = certify(np.ones(400), np.zeros(400), alpha=0.05, delta=0.05)
    other = msgspec.structs.replace(issued(bound), target="recall")
    with pytest.raises(CertificateError, match="recall"):
        certificates.check_model(other, "sha256:aa")


RELEASED = b"""{
  "id": "sha256:f1c30573c0d2a918e69b8ca3deb49d02b732810c920940d195b8588c7e537ccc",
  "bound": {
    "threshold": 0.07268170426065163,
    "local_share": 0.925,
    "n": 400,
    "k": 0,
    "alpha": 0.01,
    "delta": 0.05
  },
  "target": "agreement",
  "model_digest": "sha256:aa",
  "signal": "margin",
  "data_digest": "bb",
  "reference": {
    "name": "cloud",
    "version": "sha256:cc"
  },
  "created": "2026-01-01T00:00:00Z",
  "runtime": "onnxruntime 1.31.1",
  "isa": "x86-64-avx2"
}
"""
"""A certificate in the text that edgewise 0.1 issued, before certificates had an end, groups or score deciles."""


def test_a_certificate_of_the_first_release_keeps_its_id_and_its_text():
    certificate = certificates.decode(RELEASED)
    assert (certificate.expires, certificate.groups, certificate.bound.local_share_interval) == (None, None, (0.0, 1.0))
    assert certificates.encode(certificate) == RELEASED
    certificates.check_model(certificate, "sha256:aa")


def grouped(**changes):
    """A certificate that uses every field."""
    bounds = certificates.certify_groups(
        np.ones(500), np.zeros(500), ["a"] * 480 + ["b"] * 20, names=["a", "b"], alpha=0.01, delta=0.05
    )
    identity = msgspec.structs.asdict(issued(bounds["b"]))
    del identity["id"]
    return certificates.issue(
        **{
            **identity,
            "expires": "2026-07-01T00:00:00Z",
            "fitted_digest": "sha256:ff",
            "groups": Groups(by="label", bounds=bounds),
            "score_deciles": (-math.inf, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0, math.inf),
            "out_of_distribution_share": 0.04,
            "recertification": 2,
            **changes,
        }
    )


def test_every_field_survives_its_text_form_infinities_included():
    certificate = grouped()
    again = certificates.decode(certificates.encode(certificate))
    assert again == certificate
    assert [bound.threshold for bound in again.groups.bounds.values()] == [-math.inf, math.inf]
    assert b"Infinity" not in certificates.encode(certificate)


def test_fields_at_their_default_are_left_out_even_where_they_were_given():
    bound = certify(np.ones(400), np.zeros(400), alpha=0.01, delta=0.05)
    plain = msgspec.structs.replace(bound, local_share_interval=tuple(float(number) for number in "01"))
    identity = msgspec.structs.asdict(issued(plain))
    given = {**identity, "out_of_distribution_share": float("0.0"), "recertification": 0}
    del given["id"]
    assert certificates.issue(**given).id == identity["id"] == certificates.decode(RELEASED_ALL_LOCAL).id


RELEASED_ALL_LOCAL = (
    RELEASED.replace(b"0.07268170426065163", b'"-inf"')
    .replace(b"0.925", b"1.0")
    .replace(
        b"f1c30573c0d2a918e69b8ca3deb49d02b732810c920940d195b8588c7e537ccc",
        b"f2637c99c82256c80e777fa6c5edee445894e264f0ffcdcaca8a9a7b7c2a8a2e",
    )
)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"score_deciles": (0.1, 0.2)}, "score_deciles"),
        ({"score_deciles": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)}, "score_deciles"),
        ({"out_of_distribution_share": 1.5}, "out_of_distribution_share"),
        ({"recertification": -1}, "recertification"),
        ({"expires": "soon"}, "isoformat"),
        ({"expires": "2025-12-31T00:00:00Z"}, "expires before"),
        ({"expires": "2026-07-01T00:00:00"}, "names no zone"),
        ({"created": "2026-01-01T00:00:00"}, "names no zone"),
        ({"created": "once"}, "isoformat"),
        ({"groups": Groups(by="label", bounds={})}, "none of its groups"),
    ],
)
def test_fields_that_no_issue_gives_are_no_certificate(changes, problem):
    with pytest.raises(CertificateError, match=problem):
        certificates.decode(certificates.encode(grouped(**changes)))


@pytest.mark.parametrize("field", ["alpha", "n", "local_share_interval"])
def test_an_impossible_bound_of_a_group_is_no_certificate(field):
    sound = grouped()
    forged = msgspec.structs.replace(
        sound.bound, **{field: {"alpha": 5.0, "n": -1, "local_share_interval": (0.9, 0.1)}[field]}
    )
    groups = Groups(by="label", bounds={**sound.groups.bounds, "c": forged})
    with pytest.raises(CertificateError, match="edgewise certify"):
        certificates.decode(certificates.encode(grouped(groups=groups)))


@pytest.mark.parametrize("part", ['"groups": []', '"groups": {"by": "label"}', '"score_deciles": 3', '"groups": 1'])
def test_fields_of_another_shape_are_no_certificate(part):
    with pytest.raises(CertificateError, match="edgewise certify"):
        certificates.decode(RELEASED.replace(b'"target"', f'{part}, "target"'.encode()))


def test_every_later_field_is_covered_by_the_id():
    text = certificates.encode(grouped())
    for told, forged in (
        (b'"expires": "2026', b'"expires": "2027'),
        (b"0.04", b"0.05"),
        (b'"by": "label"', b'"by": "x"'),
    ):
        assert told in text
        with pytest.raises(CertificateError, match="changed after it was issued"):
            certificates.decode(text.replace(told, forged))


def test_a_certificate_needs_the_fits_of_its_tuning_part_and_says_which():
    certificate = grouped()
    certificates.check_model(certificate, "sha256:aa", "sha256:ff")
    with pytest.raises(CertificateError, match=r"sha256:ff, there are none\. .*fitted.npz"):
        certificates.check_model(certificate, "sha256:aa")
    with pytest.raises(CertificateError, match="those here are sha256:00"):
        certificates.check_model(certificate, "sha256:aa", "sha256:00")
    certificates.check_model(grouped(fitted_digest=None), "sha256:aa", "sha256:00")


@pytest.mark.parametrize("target", certificates.TARGETS)
def test_every_target_is_accepted(target):
    certificates.check_model(grouped(target=target), "sha256:aa", "sha256:ff")


@given(items=st.lists(st.tuples(scores_strategy, st.booleans()), min_size=60, max_size=120), data=st.data())
@settings(max_examples=40)
def test_agreement_is_monotone_in_delta_and_disagreements_and_blind_to_order(items, data):
    scores, disagree = map(np.array, zip(*items, strict=True))
    bound = certify(scores, disagree, alpha=0.05, delta=0.05)
    assert certify(scores, disagree, alpha=0.05, delta=0.2).threshold <= bound.threshold
    worse = disagree | (np.arange(len(scores)) % data.draw(st.integers(1, 9)) == 0)
    assert certify(scores, worse, alpha=0.05, delta=0.05).threshold >= bound.threshold
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(scores))
    assert certify(scores[order], disagree[order], alpha=0.05, delta=0.05) == bound
