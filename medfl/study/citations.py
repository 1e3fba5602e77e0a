"""Citations in docstrings: "(Li et al., "Title", MLSys 2020)", "Huo et al. 2020", "(arXiv 1909.06335)"."""

import re

_NAME = r"(?:[A-Z]\. ?)*[A-ZÀ-Þ][\w'-]+"
_NAMES = rf"{_NAME}(?:(?:,? and |, | & ){_NAME})*(?: et al\.?)?"
_YEAR = r"(?:19|20)\d\d"
_PARENTHESES = re.compile(r"\s*\(((?:[^()]|\([^()]*\))*)\)")
_IS_CITATION = re.compile(rf'et al|"[^"]+".*{_YEAR}|arXiv|{_NAME}(?:,? and | & ){_NAME}.*{_YEAR}|^{_NAME},? {_YEAR}$')
_TITLED = re.compile(rf'{_NAMES},? "[^"]+",? [^":;()]*?\b{_YEAR}(?:,? arXiv [\d.]+)?')
_SHORT = re.compile(rf"{_NAME}(?: et al\.,?|(?:,? and | & ){_NAME},?) {_YEAR}(?:,? arXiv [\d.]+)?")
_DATED = re.compile(rf"\b{_YEAR}\b|arXiv")


def papers(text: str) -> tuple[str, ...]:
    """The papers that a text cites, in its order."""
    plain = " ".join(text.split())
    found = [(match.start(), match[1]) for match in _PARENTHESES.finditer(plain) if _cites(match[1])]
    rest = _PARENTHESES.sub(lambda match: " " * len(match[0]) if _cites(match[1]) else match[0], plain)
    for pattern in (_TITLED, _SHORT):
        found += [(match.start(), match[0]) for match in pattern.finditer(rest)]
        rest = pattern.sub(lambda match: " " * len(match[0]), rest)
    each = [part for _, paper in sorted(found) for part in re.split(r"; (?=[A-Z])", paper)]
    return tuple(dict.fromkeys(part.strip(" ,;") for part in each if _DATED.search(part)))


def without_citations(text: str) -> str:
    """A text without the papers in parentheses."""
    return _PARENTHESES.sub(lambda match: "" if _cites(match[1]) else match[0], text)


def _cites(text: str) -> bool:
    plain = " ".join(text.split())
    return bool(_IS_CITATION.search(plain) and _DATED.search(plain))
