"""Properties: whatever is changed on the way, the request is rejected."""

from typing import Any

import pytest
from hypothesis import assume, example, given, strategies as st

from signalwire_streams.callbacks import SHA256_SIGNATURE_HEADER, SIGNATURE_HEADER, sign, verify_signature
from signalwire_streams.callbacks._signature import read_form

from .signing import FORM, JSON_BODY, KEY, STARTED, URL, form

ADDRESS = f"{URL}?tenant=a%20b&x="
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
BYTES = st.integers(min_value=0, max_value=255)


def changed(original: bytes, at: int, byte: int) -> bytes:
    at %= len(original)
    return original[:at] + bytes([byte]) + original[at + 1 :]


def covered(pairs: list[tuple[str, str]]) -> str:
    """Return what a form's signature covers: it does not say where a name ends and its value begins."""
    return "".join(name + value for name, value in sorted(pairs, key=lambda pair: pair[0]))


@given(PAIRS, st.booleans())
@example([("a", "1"), ("b", ""), ("a", "0")], False)
def test_any_signed_form_is_accepted(pairs: list[tuple[str, str]], labelled: bool) -> None:
    headers = {SIGNATURE_HEADER: sign(url=ADDRESS, fields=pairs, key=KEY)}
    if labelled:
        headers["Content-Type"] = FORM

    assert verify_signature(url=ADDRESS, headers=headers, body=form(pairs), keys=["PSK_other", KEY])


@given(PAIRS.filter(bool), st.data())
def test_changed_field_is_rejected(pairs: list[tuple[str, str]], data: Any) -> None:
    """Or dropped, repeated or blanked."""
    headers = {"Content-Type": FORM, SIGNATURE_HEADER: sign(url=ADDRESS, fields=pairs, key=KEY)}
    at = data.draw(st.integers(min_value=0, max_value=len(pairs) - 1))
    name, value = pairs[at]
    other = data.draw(
        st.sampled_from(
            [[], [(name, value)] * 2, [(name, "")], [(name, value + "x")], [(name + "x", value)], [(name, value[::-1])]]
        )
    )
    tampered = [*pairs[:at], *other, *pairs[at + 1 :]]
    assume(covered(tampered) != covered(pairs))

    assert not verify_signature(url=ADDRESS, headers=headers, body=form(tampered), keys=[KEY])


@given(st.integers(min_value=0), BYTES)
def test_changed_byte_of_a_form_is_rejected(at: int, byte: int) -> None:
    """If it changes a name or value."""
    headers = {"Content-Type": FORM, SIGNATURE_HEADER: sign(url=ADDRESS, fields=STARTED, key=KEY)}
    body = changed(form(STARTED), at, byte)
    pairs = read_form(body)
    assume(pairs is None or covered(list(pairs)) != covered(STARTED))

    assert not verify_signature(url=ADDRESS, headers=headers, body=body, keys=[KEY])


@pytest.mark.parametrize("header", [SIGNATURE_HEADER, SHA256_SIGNATURE_HEADER])
@given(at=st.integers(min_value=0), byte=BYTES)
def test_changed_byte_of_json_is_rejected(header: str, at: int, byte: int) -> None:
    algorithm: Any = "sha256" if header == SHA256_SIGNATURE_HEADER else "sha1"
    headers = {header: sign(url=ADDRESS, body=JSON_BODY, key=KEY, algorithm=algorithm)}
    body = changed(JSON_BODY, at, byte)
    assume(body != JSON_BODY)

    assert not verify_signature(url=ADDRESS, headers=headers, body=body, keys=[KEY])


@pytest.mark.parametrize("body", [form(STARTED), JSON_BODY, b""])
@given(at=st.integers(min_value=0), byte=st.integers(min_value=33, max_value=126))
def test_changed_byte_of_the_url_is_rejected(body: bytes, at: int, byte: int) -> None:
    method = "POST" if body else "GET"
    pairs = read_form(body)
    signature = sign(url=ADDRESS, fields=pairs, key=KEY) if pairs is not None else sign(url=ADDRESS, body=body, key=KEY)
    headers = {SIGNATURE_HEADER: signature}
    url = changed(ADDRESS.encode(), at, byte).decode()
    assume(url != ADDRESS)

    assert not verify_signature(url=url, headers=headers, body=body, keys=[KEY], method=method)


@pytest.mark.parametrize("body", [form(STARTED), JSON_BODY])
@given(at=st.integers(min_value=0), byte=BYTES)
def test_changed_byte_of_the_signature_is_rejected(body: bytes, at: int, byte: int) -> None:
    """Also if its last base64 character decodes to the same bytes."""
    pairs = read_form(body)
    signature = sign(url=ADDRESS, fields=pairs, key=KEY) if pairs else sign(url=ADDRESS, body=body, key=KEY)
    tampered = changed(signature.encode(), at, byte).decode("latin-1")
    assume(tampered != signature)

    assert not verify_signature(url=ADDRESS, headers={SIGNATURE_HEADER: tampered}, body=body, keys=[KEY])


@given(
    url=st.text(max_size=40),
    headers=st.dictionaries(
        st.sampled_from(
            [SIGNATURE_HEADER, SHA256_SIGNATURE_HEADER, "X-Twilio-Signature", "Content-Type", "Authorization"]
        ),
        st.one_of(st.text(max_size=20), st.just(FORM), st.just("application/json"), st.just("Basic dTpw")),
    ),
    body=st.one_of(st.binary(max_size=60), st.just(JSON_BODY), st.just(form(STARTED))),
    method=st.sampled_from(["GET", "POST", "PUT"]),
)
def test_arbitrary_requests_are_rejected_without_error(
    url: str, headers: dict[str, str], body: bytes, method: str
) -> None:
    assert not verify_signature(url=url, headers=headers, body=body, keys=[KEY], method=method)
