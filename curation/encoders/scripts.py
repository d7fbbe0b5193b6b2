"""Scripts without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer.

There is no dictionary of words. Each character counts as a word, and two adjacent ones count as a
pair of words: most words of these languages have one or two characters.
"""

import re

UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai, without its digits
    "\u0e81-\u0ecd"  # Lao
    "\u1000-\u103f\u1050-\u108f"  # Burmese
    "\u1780-\u17d3"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese syllables
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
GRAMMATICAL = re.compile(
    "[的一是在有和与與上下了张張个個着著里裡这這那为為也正两兩位名只隻"
    "\u3040-\u309f\u0e01-\u0e4e\u0e81-\u0ecd\u1000-\u108f\u1780-\u17d3]"
)
"""Characters that mean little alone: Chinese function words, Japanese endings and particles, and
letters of alphabets.
"""
UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")

# An empty match on either side of such a character, if the other side is not a space already.
BOUNDARY = re.compile(f"(?<=[{UNSPACED}])(?=\\S)|(?<=\\S)(?=[{UNSPACED}])")


def space_out(text: str) -> str:
    """A text with spaces around each character of an unspaced script.

    >>> space_out("2匹の犬, dogs")
    '2 匹 の 犬 , dogs'
    """
    return BOUNDARY.sub(" ", text)
