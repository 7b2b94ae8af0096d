"""Credentials where they must not be: in a URI or in an option. Both manifests and the command line ask here.

Whatever is found is named, never shown: the sentences go to terminals and logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import unquote

from dsfs.errors import one_line

ADVICE = (
    "put it into a Secret that secretRef names, under username, password, token, access-key or secret-key, "
    "or into the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, netrc, a git credential helper"
)

HEADERS_IN_SECRETS = (
    "Authorization, Cookie, Api-Key, PRIVATE-TOKEN, JOB-TOKEN, Deploy-Token, Ocp-Apim-Subscription-Key, "
    "or X-… for a key or token, such as X-API-Key"
)
"""For people: see ``secret_keys.is_header``."""

_ADVICE_ON_OPTIONS = (
    f"{ADVICE}; a header of an HTTP source goes into its Secret under its own name, if it is {HEADERS_IN_SECRETS}"
)

# Compared with the name in lower case and without "-", "_", "." and the like: X-Amz-Signature ends in "signature".
# Only endings, so that `signature_version`, `tokenizer` and `secretsManager` stay what they are.
_CREDENTIAL_NAME = re.compile(
    r".*(password|passwd|passphrase|secret|token|signature|credential|cookie|authorization|connectionstring|accessid"
    r"|(access|secret|api|private|account|auth|shared|storage|subscription)key(id|base64)?|sharedaccess)s?"
    r"|sig|pwd|pass|auth|xauth|jwt|bearer|sas|keypairid"
)
# s3fs calls the access key so. In a query it is more often the name of a file, so there it passes.
_CREDENTIAL_OPTIONS = frozenset({"key"})
_USERINFO = re.compile(r"://([^/?#\s]*)@")
# A ":" before any "/" and no number behind it is a password with a "/", "?" or "#" in it, cut off by the URL's grammar.
_CUT_USERINFO = re.compile(r"://(?!\[)[^/?#\s@:]*:(?![0-9]*(?:[/?#:,]|$))[^/?#\s]*[/?#].*@")
_SCP_USERINFO = re.compile(r"[^/@\s]*:[^/@\s]*@")  # user:password@host:path, without a scheme
_TOKEN_AS_USER = re.compile(r"(gh[opsur]_|github_pat_|glpat-|hf_|AKIA[0-9A-Z]{12})")
_CREDENTIAL_VALUE = re.compile(r"\s*(bearer|basic)\s+\S", re.IGNORECASE)


def is_credential_name(name: str) -> bool:
    """Whether a query parameter, an option or a header of this name holds a secret."""
    return _CREDENTIAL_NAME.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())) is not None


def credential_in_uri(uri: str) -> str | None:
    """Why this URI carries a credential and where that belongs, or None. A user name alone is none."""
    if _carries_password(uri) or ("://" not in uri and _SCP_USERINFO.match(uri)):
        return f"carries a password ({ADVICE})"
    if any(_TOKEN_AS_USER.match(userinfo) for userinfo in _USERINFO.findall(uri)):
        return f"carries a token as user name ({ADVICE})"
    for parameter in re.split(r"[?&;#]", uri)[1:]:
        name, equals, _ = parameter.partition("=")
        if equals and is_credential_name(unquote(name)):
            return f"carries a credential in its parameter {one_line(unquote(name), 40)} ({ADVICE})"
    return None


def credential_in_options(options: Mapping[str, str]) -> tuple[str, str] | None:
    """The first option that carries a credential, and why and where that belongs; or None."""
    for key, value in options.items():
        if is_credential_name(key) or key.lower() in _CREDENTIAL_OPTIONS:
            return key, f"is a credential ({_ADVICE_ON_OPTIONS})"
        if why := _credential_in_text(value):
            return key, why
    return None


def _credential_in_text(text: str) -> str | None:
    """As ``credential_in_uri``, of an option's value: a text, a URL, or JSON or XML that holds some."""
    if _CREDENTIAL_VALUE.match(text):
        return f"carries a credential ({ADVICE})"
    if text.lstrip().startswith(("{", "[")):
        try:
            return _credential_within(json.loads(text))
        except (ValueError, RecursionError):
            pass  # no JSON
    for part in re.split(r"[<>\s]", text) if "<" in text else (text,):
        if "://" in part and (why := credential_in_uri(part)):
            return why
    return None


def _credential_within(value: object) -> str | None:
    if isinstance(value, str):
        return _credential_in_text(value)
    if isinstance(value, list):
        return next((why for item in value if (why := _credential_within(item))), None)
    if isinstance(value, dict):
        for key, item in value.items():
            named = is_credential_name(key) or key.lower() in _CREDENTIAL_OPTIONS
            if named and isinstance(item, str | int | float) and item is not False and item != "":
                return f"carries a credential in {one_line(key, 40)} ({ADVICE})"
            if why := _credential_within(item):
                return why
    return None


def _carries_password(text: str) -> bool:
    for userinfo in _USERINFO.findall(text):
        _, _, password = unquote(userinfo).partition(":")
        if password:
            return True
    return _CUT_USERINFO.search(text) is not None
