"""The library's messages in the words of the command line: options and JSON types instead of Python."""

import re

_JSON_TYPES = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "NoneType": "null",
}
_TYPE = re.compile(rf"(must be [\w ]+, not|is of type) ({'|'.join(_JSON_TYPES)})\b")
_PHRASES = (
    ("pass the values as parameters={...}", "pass each value as --parameter NAME=VALUE"),
    ("pass authorization_bearer_token=... instead", "pass the token with --bearer-token-file instead"),
    ("name and unnamed=True contradict each other", "a name and --unnamed contradict each other"),
    ("write its value as a str", "write its value as a string"),
    ("must be a mapping of names to values", "must be an object"),
    ("must be True or False, not True", "must be true or false, not true"),
    ("must be True or False, not False", "must be true or false, not false"),
    ("must be True or False", "must be true or false"),
    ("must be a str", "must be a string"),
    (" True is unknown", " true is unknown"),
    (" False is unknown", " false is unknown"),
    ("with that name and may_be_running=True", "with --name and --may-be-running"),
    ("pass project= and token= instead", "set SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN instead"),
    ("and the token as token=", "and the token in SIGNALWIRE_API_TOKEN"),
)


def for_command_line(message: str) -> str:
    """Return a message with Python's words replaced."""
    message = _TYPE.sub(_in_json_words, message)
    for python, words in _PHRASES:
        message = message.replace(python, words)
    return message


def _in_json_words(found: "re.Match[str]") -> str:
    beginning = "is" if found[1] == "is of type" else found[1]
    return f"{beginning} {_JSON_TYPES[found[2]]}"
