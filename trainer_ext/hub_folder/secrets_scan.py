"""What looks like a secret: keys by their form, and values that are called a password, a key or a token.

Two kinds of rules. A prefix such as ``hf_`` says by itself what follows. A name such as ``api_key`` says it only
together with a value that no configuration, program or vocabulary of ours has: long, without blanks and, unless it is
quoted and the name leaves no doubt, of letters and digits mixed.
"""

import re

_BY_FORM = (
    rb"\bhf_(?:[A-Za-z0-9]{30,}|oauth_[\w.-]{20,})"  # Hugging Face
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{50,}|\bglpat-[\w-]{20}"
    rb"|\bsk-(?:[\w-]{32,}|[A-Za-z0-9]{20,})"  # OpenAI, Anthropic and many that follow them
    rb"|\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    rb"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}"  # Amazon, Google
    rb"|\bxox[abeprs]-[\w-]{10,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[\w-]{50,}"
    rb"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
    rb"|\b(?:AccountKey|SharedAccessKey)=[\w+/]{30,}={0,2}"  # Azure
    rb"|\b[a-z][a-z0-9+.-]*://[^/\s:@\"'<>{}]+:[^/\s:@\"'<>{}]{6,}@"
    rb"|(?i:\bbearer)[ \t]+(?=[A-Za-z]*[0-9])[\w+/~.-]{20,}"
)
# What ends a name that nothing harmless has.
_NAMES = (
    rb"(?:api[_-]?key|(?:secret|account)[_-]?(?:access[_-]?)?key|private[_-]?key|secret|passw(?:or)?d|passphrase"
    rb"|(?:access|auth|api|refresh|bearer)[_-]?token)"
)
# Between a name and its value: the closing quote of a JSON key, and a colon or an equals sign on the same line.
_IS = rb"[\"']?[ \t]*[:=][ \t]*"
_MIXED = rb"(?=[^\s\"']*[0-9])(?=[^\s\"']*[A-Za-z])"
_BY_NAME = (
    rb"(?i:" + _NAMES + _IS + rb"[\"'](?!your|my[-_]|example|<)[^\"'\s<>{}$]{12,}[\"'])"
    rb"|(?i:" + _NAMES + _IS + _MIXED + rb"[A-Za-z0-9+/=~!@%^&*-]{12,}(?=[\s,;}#]|$))"
    # A token in quotes: tokenizers have many tokens, so the name stands alone and the value is no word.
    rb"|(?i:(?<![\w.])(?:[a-z]+_)?token" + _IS + rb"[\"']" + _MIXED + rb"(?!\[|<)[\w+/=~.-]{20,}[\"'])"
    # Settings of the environment: capitals.
    rb"|\b[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|SECRET|PASSWORD)[ \t]*=[ \t]*[\"']?"
    + _MIXED
    + rb"[\w+/=~-]{16,}(?=[\s\"',;}#]|$)"
)
SECRETS = re.compile(_BY_FORM + rb"|" + _BY_NAME)


# A word that each of them has, in small letters: the rules are slow, and are tried around these words alone.
_WORDS = (
    b"hf_", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_", b"glpat-", b"sk-", b"k_live_", b"k_test_",
    b"akia", b"asia", b"aiza", b"xox", b"npm_", b"pypi-", b"eyj", b"private", b"://", b"bearer",
    b"key", b"secret", b"passw", b"passphrase", b"token",
)  # fmt: skip
_BEFORE, _AFTER = 80, 1000


def find_secret(content: bytes) -> tuple[int, str] | None:
    """The line of the first thing that looks like a secret, and its first characters; None where there is none.

    Text in UTF-16, as some editors write it, is read too.

    >>> find_secret(b"a\\nb: " + b"hf_" + b"x1" * 16)
    (2, 'hf_x1x')
    >>> find_secret(b'{"pad_token": "[PAD]", "password": 30000}') is None
    True
    """
    for text in (content, content.replace(b"\0", b"")) if b"\0" in content else (content,):
        for begin, end in _places(text):
            if match := SECRETS.search(text, begin, end):
                return text.count(b"\n", 0, match.start()) + 1, match.group()[:6].decode(errors="replace")
    return None


def _places(text: bytes) -> list[tuple[int, int]]:
    """Where to look: a stretch around each of the words, those that overlap as one."""
    small, found = text.lower(), []
    for word in _WORDS:
        at = small.find(word)
        while at >= 0:
            found.append(at)
            at = small.find(word, at + len(word))
    places: list[tuple[int, int]] = []
    for at in sorted(found):
        begin, end = max(at - _BEFORE, 0), at + _AFTER
        if places and begin <= places[-1][1]:
            places[-1] = places[-1][0], end
        else:
            places.append((begin, end))
    return places
