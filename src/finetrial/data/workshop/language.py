"""The language of a text, by its script and, for scripts of many languages, by their commonest words.

A heuristic that says when it does not know: `sure` is False where fewer than three different common words of a language
stand in the text, or another language's are nearly as many, and, for scripts of one language, below four letters.
"""

import re
from collections import Counter
from dataclasses import dataclass

SCRIPTS = {
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "Kana": "\u3040-\u30ff",
    "Hangul": "\u1100-\u11ff\uac00-\ud7af",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
}
_LETTERS = {name: re.compile(f"[{span}]") for name, span in SCRIPTS.items()}

OF_SCRIPT = {"Greek": "el", "Hangul": "ko", "Hebrew": "he", "Devanagari": "hi", "Thai": "th"}
"""Scripts that one language dominates."""

COMMON_WORDS = {
    "en": "the of and to in is that it for was on are with as be this by from or have an not at which you if so",
    "de": "der die das und ist nicht ein eine zu den von mit auf für im dem des sich auch es wird sind wie bei",
    "fr": "le la les des et est une un dans que qui pour pas sur avec ce il plus du au sont par ne cette",
    "es": "el la los las de que en un una es por con para del se no su al lo como más son está",
    "it": "il la di che un una per non con sono del della le si dei nel alla gli come più da anche",
    "pt": "os as de que em um uma é não para com do da por se no na dos mais como são",
    "nl": "de het een en van is dat op te niet zijn met voor die er aan om ook als maar bij naar wordt uit",
    "sv": "och att det som en är på av för med den till inte om ett har var vi kan från så eller",
    "pl": "nie na się do że jest to jak za po przez od dla są tym który oraz być może jego",
    "tr": "ve bir bu da de için ile olarak daha çok en gibi olan ne kadar sonra var ama mi değil her ise",
    "ru": "и в не на что с по как это из у за от то но его для к же все так о бы было",
    "uk": "і в не на що з та як це до у за від але його для є про вони так чи був ще",
}
_SCRIPT_OF = {"ru": "Cyrillic", "uk": "Cyrillic"}
_LANGUAGES: dict[str, list[str]] = {}
for _language, _words in COMMON_WORDS.items():
    for _word in _words.split():
        _LANGUAGES.setdefault(_word, []).append(_language)
FEWEST = 3
FEWEST_LETTERS = 4
MARGIN = 1.5
"""How many times as many common words the best language needs as the next."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a text seems to be written in."""

    code: str
    """ISO 639-1, or the script's name where the language is open, or `none` for a text without letters."""
    sure: bool


def detect(text: str, words: list[str]) -> Language:
    """The language of a text, given its lower-case words."""
    script, letters = _script(text)
    if script is None:
        return Language("none", False)
    enough = letters >= FEWEST_LETTERS  # a formula may have a Greek letter or two
    if script in ("Han", "Kana"):
        return Language("ja" if script == "Kana" or _LETTERS["Kana"].search(text) else "zh", enough)
    if script in OF_SCRIPT:
        return Language(OF_SCRIPT[script], enough)
    if script == "Arabic":
        return Language("fa" if re.search("[پچژگ]", text) else "ar", enough)
    counts: Counter[str] = Counter()
    for word in set(words):
        counts.update(_LANGUAGES.get(word, ()))
    fitting = [(n, code) for code, n in counts.items() if _SCRIPT_OF.get(code, "Latin") == script]
    best, language = max(fitting, default=(0, script))
    next_best = max((n for n, code in fitting if code != language), default=0)
    return Language(language, best >= FEWEST and best >= MARGIN * next_best)


def _script(text: str) -> tuple[str | None, int]:
    """The script of most letters and how many it has; None where there are none."""
    if text.isascii():
        return ("Latin" if _LETTERS["Latin"].search(text) else None), 0
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    best = max(counts, key=lambda name: counts[name])
    return (best if counts[best] else None), counts[best]
