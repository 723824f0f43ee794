"""Judges of generated text: what each takes for the same, what each refuses to take for anything."""

import linecache
import re
import signal
import sys
from contextlib import contextmanager
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import Prediction
from edgewise.errors import CertificateError, ConfigError, InputError
from edgewise.router import saying
from edgewise.router.agreement import JUDGES, canonical, certified_name, check_judge, judge_named, judge_of
from edgewise.router.saying import chosen_letter, last_number, normalised

DIGEST = "sha256:" + "5" * 64
HARD = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("ͅßẞİıſﬁǰΣςᾼ½²٣−（）＂“”«»¿¡。\u200b\u00a0\u202f\u2044…‰#$€%-+.,/^ABab019 \n"),
    )
)


class Letters:
    """An embedding model: how often each of three letters stands in a text."""

    digest = DIGEST
    labels = ()
    task = "sentence-similarity"

    def predict(self, inputs):
        if "" in inputs:
            raise InputError("Empty.", "")
        return [Prediction(output=tuple(float(text.count(letter)) for letter in "abc")) for text in inputs]


def judges():
    return [judge_named(name) for name in ("exact", "choice", "number")] + [
        judge_named("similarity", embedder=Letters())
    ]


@given(HARD, HARD)
def test_whoever_speaks_first_the_verdict_is_the_same(one, other):
    for agree in judges():
        assert agree(one, other) == agree(other, one)


@given(HARD)
def test_a_text_agrees_with_itself_where_it_says_something(text):
    exact, choice, number, similarity = judges()
    assert exact(text, text)
    assert similarity(text, text)
    assert choice(text, text) == (chosen_letter(text) is not None)
    assert number(text, text) == (last_number(text) is not None)


@given(HARD)
def test_normalising_twice_is_normalising_once(text):
    assert normalised(normalised(text)) == normalised(text)


@given(
    st.sampled_from(["{}", "“{}”", " {}.", "**{}**!", "({})", "{}\n"]),
    st.sampled_from(["ΣΊΣΥΦΟΣ", "Straße", "ﬁne", "-5 %"]),
)
def test_dress_does_not_matter(dress, word):
    assert normalised(dress.format(word)) == normalised(word.upper())


@pytest.mark.parametrize(
    ("one", "other"), [("-5", "5"), ("5%", "5"), ("$5", "5"), ("A*", "A"), ("Paris, France", "Paris")]
)
def test_what_changes_a_value_is_not_dress(one, other):
    assert not judge_named("exact")(one, other)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B**.", "B"),
        ("Ｂ", "B"),
        ("\\boxed{D}", "D"),
        ("Answer: B.", "B"),
        ("the answer is B", "B"),
        ("The correct answer is option (C), because A is wrong.", "C"),
        ("A. one\nB. two\nAnswer: B", "B"),
        ("B) Paris", "B"),
        ("I would choose D", "D"),
        ("A is incorrect. C is correct.", "C"),
        ("A. one\nB. two", None),
        ("The answer is B or C", None),
        ("Both B and C are correct", None),
        ("The answer is B. The answer is C.", None),
        ("The answer is not B", None),
        ("The answer is a mystery", None),
        ("I would not choose B.", None),
        ("I'd never pick C", None),
        ("Do not select D.", None),
        ("Option A is wrong.", None),
        ("(A) is false", None),
        ("Not option B", None),
        ("Answer: (A) is incorrect, the correct one is (C).", None),
        ("The answer is A. A is wrong.", None),
        ("The answer is A, but that is wrong.", None),
        ("The answer is A. Wait, no: it is C.", None),
        ("The answer is B? No, C.", None),
        ("Answer: B or maybe C", None),
        ("If the answer is B, I am lost", None),
        ("I doubt that B is correct", None),
        ("I'd eliminate option A.", None),
        ("B isn't the answer, and option B isn't either", None),
        ("Since A is not right, the answer is B.", "B"),
        ("That is why the answer is B, not A.", "B"),
        ("No, the answer is C", "C"),
        ("I think so", None),
        ("A dog", None),
        ("Vitamin C", None),
        ("C++", None),
        ("", None),
    ],
)
def test_the_letter_that_a_text_settles_on(text, letter):
    assert chosen_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = <<3+4=7>>7\n#### 1,234", 1234),
        ("It costs $1,234.50.", Fraction(2469, 2)),
        ("−5", -5),
        ("-$5", -5),
        ("Answer: 5", 5),
        ("48/2 = 24 clips in May. Altogether 48+24 = 72.", 72),
        ("3 and 4 is 7", 7),
        ("In 2 weeks she earns $40 a day.", 40),
        ("10 000", 10000),
        ("$12 345.50", Fraction(24691, 2)),
        ("-1'234'567", -1234567),
        ("1_000", 1000),
        ("٣٬٠٠٠", 3000),
        ("5-3", None),
        ("10 - 15 minutes", None),
        ("3 to 5", None),
        ("3 out of 5", None),
        ("2, 3 and 4", None),
        ("(1, 2)", None),
        ("3:45", None),
        ("2024-05-06", None),
        ("2h 30", None),
        ("5 feet 4 inches", None),
        ("6'4", None),
        ("1_99", None),
        ("2024 100", None),
        ("10 0000", None),
        ("3 x 4", None),
        ("v1.2.3", None),
        ("$1.5 million", None),
        ("10k", None),
        ("5 dozen", None),
        ("negative 5", None),
        ("–5", None),
        ("not 5", None),
        ("x < 5", None),
        ("√5", None),
        ("3½", Fraction(7, 2)),
        ("1 1/2 cups", Fraction(3, 2)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("50%", 50),
        ("1.5 × 10^3", 1500),
        ("1{,}234", 1234),
        ("1\u202f234", 1234),
        ("٣٤", 34),
        ("25 m²", 25),
        ("It is 5. #### ", 5),
        ("Rs.5", 5),
        ("1/2/2024", None),
        ("3,14", None),
        ("5²", None),
        ("10^{3}", None),
        ("1.2.3", None),
        ("1/0", None),
        ("1e999", None),
        ("H2O", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_the_number_that_a_text_ends_with(text, number):
    assert last_number(text) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4))
def test_numbers_are_equal_as_decimals(value):
    assert judge_named("number")(f"So it is {value:,f}.", f"#### {value.normalize():f}")


@pytest.mark.parametrize(
    "text",
    [
        " " * 100_000,
        "\n" * 100_000,
        "B," * 30_000,
        "1 " * 50_000,
        "1 000 " * 20_000,
        "option B is " * 9_000,
        "(" * 5_000 + ")" * 5_000,
        "\\boxed{" * 20_000,
    ],
)
def test_no_text_takes_long(text):
    """A text that is read again from each of its words would take hours: the alarm ends that, and the test with it."""
    with alarm(60):
        for agree in judges():
            agree(text, text + "x")


def test_a_pattern_that_reads_on_from_every_word_is_stopped_by_the_alarm():
    with pytest.raises(TimeoutError), alarm(0.05):
        re.search(r"(?:a|a)*$", "a" * 100_000 + "b")


@contextmanager
def alarm(seconds):
    """Ends what takes longer."""

    def ring(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_vectors_that_point_the_same_way_agree():
    agree = judge_named("similarity:threshold=0.9", embedder=Letters())
    assert agree("aab", "aaaabb")
    assert not agree("aab", "abb")
    assert not agree("zzz", "yyy"), "vectors of no direction are like nothing"
    assert not agree("", "a"), "what the model cannot read agrees with nothing"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("exakt", "'exact'"),
        ("", "exact, choice"),
        ("exact:case=1", "no option"),
        ("similarity:treshold=1", "threshold"),
        ("similarity:threshold=nan", "number above 0"),
        ("similarity:threshold=1.5", "number above 0"),
        ("similarity", "embedding model"),
        ("python:os", "python:package.module:function"),
        ("python:no.such.module:agree", "cannot be imported"),
        ("python:math:agree", "no function 'agree'"),
        ("python:math:pi", "no function 'pi'"),
    ],
)
def test_a_name_that_names_no_judge_is_refused_with_a_remedy(name, hint):
    with pytest.raises(ConfigError) as refusal:
        judge_named(name)
    assert hint in str(refusal.value)


def test_every_judge_is_named():
    for kind in JUDGES:
        check_judge("python:json:dumps" if kind == "python" else kind)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a user's module of a judge."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body):
        sys.modules.pop("own_judge_of_a_test", None)
        (tmp_path / "own_judge_of_a_test.py").write_text(f"def agree(edge, cloud):\n    {body}\n")
        return "python:own_judge_of_a_test:agree"

    yield write
    sys.modules.pop("own_judge_of_a_test", None)


def test_a_function_of_ones_own_judges(own_module):
    agree = judge_named(own_module("return edge[0] == cloud[0]"))
    assert agree("ab", "ac")
    assert not agree("ab", "bb")


@pytest.mark.parametrize("body", ["raise KeyError(edge)", "return None", "return 1"])
def test_a_function_that_judges_badly_says_so_without_the_texts(own_module, body):
    agree = judge_named(own_module(body))
    with pytest.raises(CertificateError, match="own_judge_of_a_test") as refusal:
        agree("secret", "secret")
    assert "secret" not in str(refusal.value)


def test_a_certificate_names_what_judged(own_module):
    name = own_module("return True")
    certified = certified_name(name)
    assert certified.startswith(f"{name}@sha256:")
    assert judge_of(certified, asked=name)("a", "b")
    assert certified_name("similarity", embedder=Letters()) == f"similarity:threshold=0.9@{DIGEST}"
    assert certified_name("choice") == "choice"


def test_another_function_than_the_certified_one_is_refused(own_module):
    certified = certified_name(own_module("return True"))
    own_module("return  True")
    linecache.clearcache()
    with pytest.raises(CertificateError, match="another here"):
        judge_of(certified, asked=canonical(certified))


def test_another_embedding_model_than_the_certified_one_is_refused():
    other = Letters()
    other.digest = "sha256:" + "6" * 64
    with pytest.raises(CertificateError, match="another here"):
        judge_of(f"similarity:threshold=0.9@{DIGEST}", embedder=other)


def test_no_file_makes_a_process_import_code(own_module, tmp_path):
    name = own_module("return True")
    with pytest.raises(ConfigError, match="import"):
        judge_of(certified_name(name))
    sys.modules.pop("own_judge_of_a_test", None)
    with pytest.raises(ConfigError):
        judge_of(name)
    assert "own_judge_of_a_test" not in sys.modules


def test_a_certificate_of_another_judge_than_the_one_asked_for_is_refused():
    with pytest.raises(ConfigError, match="'choice'"):
        judge_of("choice", asked="exact")
    assert judge_of(f"similarity:threshold=0.9@{DIGEST}", asked="similarity", embedder=Letters())("a", "a")


def loops_within(pattern, inside=False):
    """Whether a parsed pattern repeats without an end what itself repeats without an end."""
    found = False
    for code, argument in pattern:
        name = str(code)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            endless = argument[1] is re._constants.MAXREPEAT
            found |= (endless and inside) or loops_within(argument[2], inside or endless)
        elif name == "SUBPATTERN":
            found |= loops_within(argument[3], inside)
        elif name == "BRANCH":
            found |= any(loops_within(one, inside) for one in argument[1])
        elif name in ("ASSERT", "ASSERT_NOT"):
            found |= loops_within(argument[1], inside)
    return found


def test_no_pattern_runs_on_from_every_word_of_a_text():
    """Words that may follow each other for ever would be read to the end again from each of them."""
    assert loops_within(re._parser.parse(r"a(?:\s+b)*c"))
    patterns = [*saying._STATED, *saying._MARKED, saying._MARKUP, saying._ALONE, saying._REFUSED, saying._JOINED]
    assert not [one.pattern for one in patterns if loops_within(re._parser.parse(one.pattern, one.flags))]


PHRASES = st.sampled_from(
    ["answer", "is", "the", "option", "choose", "A", "A,", "or", "a dog", "(", "(B)", "B is", "best"]
)


@given(st.lists(PHRASES, min_size=1, max_size=3), st.sampled_from([" ", " " * 9, "\n"]))
def test_what_is_said_again_and_again_is_said_once(phrases, blank):
    letters = [chosen_letter(blank.join([*phrases] * times)) for times in (20, 200)]
    assert letters[0] == letters[1]


def test_marks_around_a_text_come_off_in_one_pass():
    assert normalised('"' * 200_000 + "A" + '."' * 100_000 + '"' * 100_000) == "a"
