"""Error bodies in every shape of the platform, and making their text fit to be shown."""

import time
from collections.abc import Callable
from html import escape
from json import dumps
from unicodedata import normalize
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, strategies as st

from signalwire_streams._http import error_bodies as problems
from signalwire_streams._http.error_bodies import Problem, read_problem, redact

DOCUMENTED = {
    "code": 20003,
    "message": "Authentication failed",
    "more_info": "https://signalwire.com/docs/compatibility-api/reference/errors",
    "status": 401,
}

SHAPES: dict[str, tuple[object, Problem]] = {
    "code, message, more_info, status": (
        DOCUMENTED,
        Problem(
            sentences=("Authentication failed",),
            code=20003,
            more_info="https://signalwire.com/docs/compatibility-api/reference/errors",
            is_api=True,
            status=401,
        ),
    ),
    "errors as sentences": (
        {"errors": ["Validation error message", "Url is invalid"]},
        Problem(sentences=("Validation error message", "Url is invalid"), status=422),
    ),
    "errors as objects": (
        {"errors": [{"code": "20404", "message": "not here"}, {"code": 7, "message": "nor there"}]},
        Problem(sentences=("not here", "nor there"), code=20404, status=422),
    ),
    "errors with details": ({"errors": [{"detail": "too long"}]}, Problem(sentences=("too long",), status=422)),
    "a detail where the message is nothing": (
        {"errors": [{"code": 1, "message": None, "detail": "too long"}]},
        Problem(sentences=("too long",), code=1, status=422),
    ),
    "a message before a detail": (
        {"errors": [{"message": "too long", "detail": "by far"}]},
        Problem(sentences=("too long",), status=422),
    ),
    "a message alone, as proxies have it": (
        {"message": "no healthy upstream"},
        Problem(sentences=("no healthy upstream",)),
    ),
    "a message with the page about it": (
        {"message": "Not found", "more_info": None},
        Problem(sentences=("Not found",)),
    ),
    "both shapes at once": (
        {"code": 1, "message": "first", "errors": ["second", {"code": 2, "message": "third"}]},
        Problem(sentences=("first", "second", "third"), code=1, status=422),
    ),
    "code alone": ({"code": 20429}, Problem(code=20429)),
    "code as text": ({"code": "20429", "message": "m"}, Problem(sentences=("m",), code=20429)),
    "code of the first error that has one": (
        {"errors": [{"message": "a"}, {"code": 3, "message": "b"}]},
        Problem(sentences=("a", "b"), code=3, status=422),
    ),
    "blank sentences": ({"message": " ", "errors": ["", {"code": 1}, {}]}, Problem(code=1)),
    "an error's page without its status": (
        {"code": 20404, "message": "m", "more_info": None},
        Problem(sentences=("m",), code=20404, is_api=True, status=400),
    ),
    "a status that is no error's": (
        {"code": 20404, "message": "m", "status": 200},
        Problem(sentences=("m",), code=20404, is_api=True, status=400),
    ),
    **{
        f"status {status}": (
            {"code": 20404, "message": "m", "status": status},
            Problem(sentences=("m",), code=20404, is_api=True, status=read),
        )
        for status, read in ((399, 400), (400, 400), (599, 599), (600, 400))
    },
    "code of another type": ({"code": True}, Problem()),
    "code that is no number": ({"code": "-1"}, Problem()),
    "code in other digits": ({"code": "٢٠"}, Problem()),
    "code of nine digits": ({"code": 999_999_999}, Problem(code=999_999_999)),
    "code of ten digits": ({"code": 1_000_000_000}, Problem()),
    "code of ten digits, as text": ({"code": "1000000000"}, Problem()),
    "code without end": ({"code": 10**4000}, Problem()),
    "code without end, as text": ({"code": "9" * 300}, Problem()),
    "code below zero": ({"code": -1}, Problem()),
    "message of another type": ({"message": ["x"], "more_info": 7}, Problem()),
    "errors of another type": ({"errors": {"url": ["bad"]}}, Problem()),
    "errors that are numbers": ({"code": 7, "errors": [1, None, ["x"]]}, Problem(code=7)),
    "nothing known": ({"error": {"reason": "x"}}, Problem()),
    "an empty object": ({}, Problem()),
    "nothing": (None, Problem()),
    "a list": (["x"], Problem()),
    "text": ("Bad Gateway", Problem()),
}


@pytest.mark.parametrize(("document", "problem"), SHAPES.values(), ids=SHAPES)
def test_error_body_shapes_are_parsed(document: object, problem: Problem) -> None:
    """Each shape that the platform uses is read, and any other is an empty problem."""
    assert read_problem(document) == problem


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        ("Duplicated stream name", True),
        ("Duplicate name", True),
        ("duplicated  stream   name: room-7", True),
        ("A stream with that name already exists", True),
        ("Name has already been taken", True),
        ("Name is in use", True),
        ("The name must be unique", True),
        ("Duplicated stream ID", False),
        ("Name is too long", False),
        ("Nickname already taken", False),
        ("Parameter name must be unique", False),
        ("Parameter2.Name must be unique", False),
        ("Parameter 3 name already used", False),
        ("Parameter 3: name is taken", False),
        ("Parameters[1][name] is taken", False),
        ("Friendly name of the conference must be unique", False),
        ("The name of the project is taken", False),
        ("Project name is already suspended", False),
        ("The name is already suspended", False),
        ("Url host name is already blocked", False),
        ("Codec name is not in use", False),
        ("The name is not in use", False),
        ("User name already exists", False),
        ("The name of the stream must be unique", True),
        ("stream_name is already in use", True),
        ("Stream's name already used", True),
        ('Invalid stream: "Name" is not unique', True),
        ("'name' has already been taken", True),
        ("Url is invalid", False),
        ("The conference is already completed", False),
    ],
)
def test_duplicate_name_rejection_is_recognized_by_its_words(sentence: str, *, says: bool) -> None:
    """The callback's words for a duplicate name, and the usual ones, are recognised."""
    assert Problem(sentences=("Something else", sentence)).says_duplicate_name is says


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        ("Stream is already stopped", True),
        ("stream has already been stopped", True),
        ("The call has already ended", True),
        ("Already completed", True),
        ("Call is not in-progress", True),
        ("The stream is not running", True),
        ("Stream not found", False),
        ("Status is invalid", False),
        ("Url is invalid", False),
    ],
)
def test_already_stopped_rejection_is_recognized_by_its_words(sentence: str, *, says: bool) -> None:
    """A rejection to stop what is stopped already is recognised by its words."""
    assert Problem(sentences=(sentence,)).says_already_stopped is says


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("  two\r\nlines\tand\x00more  ", "two lines and more"),
        ("a\u2028b\u2029c\x85d\x0be", "a b c d e"),
        ("a\u202eb\ud800c", "a b c"),
        ("", ""),
        ("\n\n", ""),
        ("größe 通話", "größe 通話"),
    ],
)
def test_foreign_text_becomes_one_line(text: str, shown: str) -> None:
    """Line breaks, control characters and whatever can't be printed become blanks."""
    assert redact(text, ()) == shown


def test_foreign_text_is_truncated() -> None:
    """Long text is cut, and says so."""
    assert redact("x" * 300, ()) == "x" * 300
    assert redact("x" * 301, ()) == "x" * 299 + "…"


SPELLINGS: dict[str, tuple[str, str]] = {
    "as it is": ("PTa+b/c=d&e", "PTa+b/c=d&e"),
    "as in a form": ("PTa+b/c d", quote_plus("PTa+b/c d")),
    "as in a path": ("PTa+b/c d", quote("PTa+b/c d", safe="")),
    "in small percent-escapes": ("PTa/b+c", "PTa%2fb%2bc"),
    "in other capitals": ("PTa+b/c=d&e", "ptA+B/C=D&E"),
    "in a page": ("PT<a>&'\"", "PT&lt;a&gt;&amp;&#x27;&quot;"),
    "in JSON": ('PT"a"\\\nö', 'PT\\"a\\"\\\\\\n\\u00F6'),
    "in JSON, with escaped slashes": ("PTa/b", "PTa\\/b"),
    "with umlauts in a form": ("größe", quote_plus("größe")),
    "with a line break": ("two\nlines", "two\nlines"),
}


@pytest.mark.parametrize(("secret", "echo"), SPELLINGS.values(), ids=SPELLINGS)
def test_secret_is_redacted_in_each_encoding(secret: str, echo: str) -> None:
    """A secret that the Space repeats is not shown, neither bare nor escaped for a URL, a page or JSON."""
    assert redact(f"bad value {echo}, {echo}!", (secret,)) == "bad value ***, ***!"


@pytest.mark.parametrize("before", range(285, 301, 3))
def test_secret_is_not_truncated_in_half(before: int) -> None:
    """A secret that stands where the text is cut leaves not even its beginning."""
    shown = redact("x" * before + "hush-hush-hush" + "y" * 50, ("hush-hush-hush",))
    assert "h" not in shown
    assert len(shown) <= 300


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("7", "code 7 of 17", "code *** of 17"),
        ("yes", "yes, yesterday", "***, yesterday"),
        ("", "plain", "plain"),
        (" ", "a b", "a b"),
        ("a.b", "a.b axb", "*** axb"),
        ("$", "a $ b", "a *** b"),
        ("a&b", "a&amp;b a&amp;bc", "*** a&amp;bc"),
    ],
)
def test_short_secret_is_redacted_as_whole_word_only(secret: str, text: str, shown: str) -> None:
    """A secret of up to three characters is replaced where it is a word of its own."""
    assert redact(text, (secret,)) == shown


def test_overlapping_secrets_are_redacted() -> None:
    """Of secrets within each other, or that overlap, no rest is left, whatever their order."""
    for secrets in (("hush", "hush-hush-very"), ("hush-hush-very", "hush")):
        assert redact("hush-hush-very", secrets) == "***"
    for secrets in (("abcdef", "defghi"), ("defghi", "abcdef")):
        assert redact("<abcdefghi>", secrets) == "<***>"
    assert redact("abcdefgh", ("abcd", "efgh")) == "******"


_LETTERS = "a" * 65_536


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        (_LETTERS, ["a" * length for length in range(20, 2000, 20)]),
        (_LETTERS, [f"{'a' * 1900}{number}" for number in range(99)]),
        ("a" * 1000 + "b" + _LETTERS, [f"{'a' * 1900}{number}" for number in range(99)]),
        (_LETTERS, [f"{'a' * 1900}/&<\"' \n{number}" for number in range(99)]),
        ("ab" * 32_768, [f"{'ab' * length}/x" for length in range(900, 999)]),
        ("\u00e4" * 65_536, ["\u00e4" * 500 + str(number) for number in range(99)]),
    ],
)
def test_many_secrets_of_repeated_letters_are_redacted_in_time(text: str, secrets: list[str]) -> None:
    """Each character of a text is compared once, and not once for each beginning and each secret."""
    began = time.process_time()
    assert set(redact(text, secrets)) <= set("*b")
    assert time.process_time() - began < 10


def test_many_large_secrets_that_are_not_in_a_text_take_no_time() -> None:
    """An error has some twenty texts, so that what each secret costs counts that many times."""
    secrets = ["\u65e5\u672c\u8a9e" * 680 + str(number) for number in range(99)]
    began = time.process_time()
    for number in range(20):
        assert redact(f"\u65e5\u672c\u306e\u30a8\u30e9\u30fc {number}", secrets).endswith(str(number))
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "secret",
    ["\u1100\u1161\u11a8" * 30, "\u65e5\u672c\u8a9e-hush", " \u00e9\u0301-hush", "/\u200b/hush"],
    ids=["Korean", "Japanese", "accents", "signs"],
)
def test_secret_that_begins_with_no_plain_letter_is_redacted_in_any_spelling(secret: str) -> None:
    """Whether its letters are composed or not, and encoded or not."""
    spellings = (secret, normalize("NFC", secret), normalize("NFD", secret), quote_plus(secret), dumps(secret)[1:-1])
    for spelling in spellings:
        assert redact(f"<{spelling}>", [secret]).replace(" ", "") == "<***>"


def test_secret_that_repeats_its_own_beginning_is_redacted_whole() -> None:
    """A secret that begins within a beginning of itself is found as well."""
    secret = "ab" * 9 + "-very-hush"
    for before in range(1, 40):
        for text in ("ab" * before + secret, "b" + "ab" * before + secret):
            assert "hush" not in redact(text, (secret,))
            assert "very" not in redact(text, (secret, "ab" * 12, "a"))


def test_secret_with_lone_surrogate_is_redacted() -> None:
    """Half a surrogate pair in a secret neither stops the search nor gets through."""
    assert redact("bad hush\ud800hush!", ("hush\ud800hush",)) == "bad ***!"


def test_absent_secrets_are_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a secret whose first letters stand in the text is encoded, as far as it could be shown."""
    encoded: list[str] = []
    variants = problems._variants

    def encode(secret: str) -> set[str]:
        encoded.append(secret)
        return variants(secret)

    monkeypatch.setattr(problems, "_variants", encode)
    secrets = [f"{number:05}" + "v" * size for number in range(90) for size in (1000, 100_000)]

    assert redact("x" * 2000, secrets) == "x" * 299 + "…"
    assert encoded == []
    assert redact(f"bad {secrets[6].upper()}!", secrets) == "bad ***!"
    assert len(encoded) == 2
    assert max(map(len, encoded)) < 3000


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("hush-hush\n", "'hush-hush' is bad", "'***' is bad"),
        ("  hush-hush  ", "'hush-hush' is bad", "'***' is bad"),
        ("hush\nvery", "'hush\r\nvery' is bad", "'***' is bad"),
        ("hush  very", "'hush very' is bad", "'***' is bad"),
        ("hush very", "'hush\n   very' is bad", "'***' is bad"),
        ("hush-very", "'hush - very' is bad", "'***' is bad"),
        ("hush\u200bvery", "'hushvery' is bad", "'***' is bad"),
        ("hushe\u0301very", "'hush\xe9very' is bad", "'***' is bad"),
        ("hush\xe9very", "'hushe\u0301very' is bad", "'***' is bad"),
        ("hush & very\n", "hush+%26+very is bad", "*** is bad"),
        ("hush &\nvery", "hush+%26%0D%0Avery is bad", "*** is bad"),
        ("hush &\nvery", "hush &amp;\r\nvery is bad", "*** is bad"),
        ('hush\n"very', 'hush\\n\\"very is bad', "*** is bad"),
        ("hush-hush-very-long", "'hush-hush...' is too long", "'***...' is too long"),
        ("hush-hush-very-long", "'hush-hus' is too long", "'***' is too long"),
        ("hush-hush-very-long", "'hush-hu' is too long", "'hush-hu' is too long"),
        ("hush-hush-very-very-long", "hush-hush-very-veryX is cut", "***X is cut"),
        ("hush-hush-very-very-long", "hush-hush-very-vX is cut", "***X is cut"),
        ("hush-hush-very-very-long", "hush-hush-very-X is cut", "hush-hush-very-X is cut"),
        ("  abc\n", "xabcx or abc is bad", "xabcx or *** is bad"),
        ("  abcd\n", "xabcdx or abcd is bad", "x***x or *** is bad"),
        ("https://a.example", "see https://b.example", "see https://b.example"),
        ("customer-7", "customers are many", "customers are many"),
    ],
)
def test_secret_with_changed_white_space_or_end_is_redacted(secret: str, text: str, shown: str) -> None:
    """A Space may trim a value, break it into lines, compose its accents, or show its beginning only."""
    assert redact(text, (secret,)) == shown


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("hush\u0131ng", "HUSHING"),
        ("\u017fecret", "SECRET"),
        ("\u212aelvin", "kelvin"),
        ("\u0130stanbul", "istanbul"),
        ("gr\xf6\xdfe", "GR\xd6\u1e9eE"),
        ("\xb5volt", "\u03bcVOLT"),
        ("abab", "ababab"),
    ],
)
def test_secret_is_found_in_any_case(secret: str, text: str) -> None:
    """Letters whose other case is a letter of another alphabet or of two are found, and so are overlapping ones."""
    assert redact(f"<{text}>", (secret,)) == "<***>"


@given(st.text(), st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=3))
def test_redacted_text_is_one_short_line(text: str, secrets: list[str]) -> None:
    """Any text becomes one printable line of at most 300 characters."""
    shown = redact(text, secrets)
    assert shown.isprintable()
    assert len(shown) <= 300


@given(
    around=st.text(st.sampled_from("xyz,\n ")),
    secret=st.text(st.sampled_from("ABC+/&=% é\n"), min_size=4, max_size=12).filter(
        lambda text: set("ABC") & set(text)
    ),
    spell=st.sampled_from(
        [str, str.lower, quote_plus, lambda text: quote(text, safe=""), escape, lambda text: dumps(text)[1:-1]]
    ),
)
def test_any_secret_in_any_encoding_is_redacted(around: str, secret: str, spell: Callable[[str], str]) -> None:
    """A secret anywhere in a text and in any encoding is hidden."""
    assert not set("ABCabc") & set(redact(around + spell(secret) + around, (secret,)))


@pytest.mark.parametrize(
    ("document", "is_api"),
    [
        ({"code": 20001, "message": "Unknown error", "more_info": "https://signalwire.com/x", "status": 503}, True),
        ({"code": "20001", "message": "Unknown error", "status": 503}, True),
        ({"code": 10_000, "message": "Unknown error", "status": 503}, True),
        ({"code": 9_999, "message": "Unknown error", "status": 503}, False),
        ({"code": 20001, "message": "Unknown error"}, False),
        ({"code": 503, "message": "upstream timed out", "status": 503}, False),
        ({"code": 14, "message": "upstream connect error", "details": []}, False),
        ({"code": 20001, "message": None, "status": 503}, False),
        ({"errors": ["upstream reset before response"]}, False),
        ({"errors": []}, False),
        ({"message": "no healthy upstream", "more_info": "https://gateway.example"}, False),
    ],
)
def test_only_documented_error_shape_is_api(document: object, is_api: bool) -> None:
    """A gateway's JSON, which says nothing of what the Space did, is not taken for the API's words."""
    assert read_problem(document).is_api is is_api


def test_twenty_sentences_of_an_error_are_kept() -> None:
    assert read_problem({"errors": [str(number) for number in range(25)]}).sentences == tuple(map(str, range(20)))
