"""Writes tests/golden/bpe_ids.json: the ids that open_clip's tokenizer gives varied texts.

Run it in an environment of its own. It needs no clip_jax, and torch only because open_clip's
tokenizer imports it:

    pip install --no-deps open_clip_torch==3.3.0
    pip install torch==2.13.0 ftfy==6.3.1 numpy regex
    python tools/golden_bpe.py tests/golden/bpe_ids.json

open_clip's tokenizer spells its special tokens differently from OpenAI's, so no text contains any.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

CHOSEN = [
    "",
    " ",
    "\t \n\r\n",
    "Hello World!",
    "a photo of a cat.",
    "A photo of a CAT.",
    "it's don't we're I'm they'll he'd I've",
    "IT'S DON'T WE'RE I'M THEY'LL HE'D I'VE",
    "'s't're've'm'll'd",
    "rock'n'roll 'tis o'clock dogs' 'quoted'",
    "it\u2019s a \u2018curly\u2019 \u201cquote\u201d",
    "the \u017fhip'\u017f ma\u017ft",
    "naïve café — “quotes” …",
    "crème brûlée, jalapeño, smörgåsbord, façade",
    "e\u0301te\u0301 cafe\u0301 A\u030angstro\u0308m",
    "STRASSE straße ẞ",
    "İstanbul ISPARTA ılık",
    "ΑΛΦΑ ωμέγα ΟΔΟΣ ὈΔΥΣΣΕΎΣ",
    "Москва и Санкт-Петербург",
    "日本語 テスト 😀",
    "東京タワーの夜景を撮影しました",
    "你好，世界！这是一只猫。",
    "안녕하세요 세계 고양이 사진",
    "สวัสดีชาวโลก แมวน่ารัก",
    "नमस्ते दुनिया",
    "مرحبا بالعالم صورة قطة",
    "שלום עולם תמונה של חתול",
    "გამარჯობა მსოფლიო",
    "Ａｂｃ ﬁsh",
    "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ",
    "ｶﾀｶﾅ ﾊﾝｶｸ ＦＵＬＬ　ＷＩＤＴＨ １２３",
    "sâ€™il",
    "âœ” No problems",
    "CafÃ© MÃ¼nchen",
    "Ã la mode",
    "â€œmojibakeâ€\x9d â€“ dash",
    "ðŸ˜€ mojibake emoji",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    "l’humanitÃ©",
    "&amp;amp; &lt;b&gt;",
    "&amp;amp;amp;amp;lt;",
    "AT&T, R&D, Q&A, black & white, a &b& c, &",
    "this&not that &copy 2020 &copy; 2021",
    "caf&eacute; P&EACUTE;REZ &hellip; &nbsp; &mdash;",
    "&#39;quoted&#39; &#x2019; &#8230; &#128512;",
    "&#0; &#28; &#127; &#xD800; &#x110000; &#133;",
    "&#xZZ; &#; &; &unknown; &AMP;lt;",
    "<b>bold</b> <a href='x'>caf&eacute;</a>",
    "<br/>&amp;<br/>\n&eacute;",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "line one\nline two\r\nline three\rline four\ffive\vsix",
    "zero\u200bwidth \u200djoiner\u200c and \ufeffmark",
    "no\u00a0break\u2003em\u3000ideographic\u1680ogham",
    "next\u0085line \u2028separator\u2029 paragraph",
    "bell\x07 null\x00 escape\x1b delete\x7f unit\x1fgroup\x1dend",
    "\x1b[36;44mcoloured\x1b[0m text \x1b[31",
    "lone \ud83d surrogate \udca9 and pair \ud83d\udca9",
    "2021 3.14",
    "1234567890 1,000,000 50% $9.99 €20 £5 ¥100",
    "½ ¼ ² ³ ₂ Ⅳ ⅷ ① ٣ ५",
    "12th 1st 4K 1080p mp3 h264 b2b",
    "2023-11-05T12:34:56Z",
    "😀😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ☃️ ❤️",
    "cat😺dog🐶",
    "!!! ??? ... --- *** ### @@@",
    "!?!?!?!!??",
    "......................",
    "----------------------------------------",
    "(parentheses) [brackets] {braces} <angles>",
    "email me@example.com or visit https://example.com/a?b=c&d=e#f",
    "#hashtag @mention $TICKER",
    "C:\\path\\to\\file.txt /usr/local/bin",
    "snake_case camelCase kebab-case CONSTANT_CASE",
    "IMG_20190704_123456.JPG DSC00042.jpeg",
    "f(x) = x² + 2x − 1 ≤ ∞ ∑ ∫ √ ≠ ≈",
    "→ ← ↑ ↓ ⇒ ★ ☆ ♠ ♥ ™ ® © ° µ",
    "antidisestablishmentarianism",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "a" * 100,
    "ab" * 60,
    "aaab" * 30,
    "ha" * 25 + "!" * 25,
    "z" * 7 + "y" * 9,
    "q1w2e3r4t5",
    "supercalifragilisticexpialidocious" * 4,
    "你" * 40,
    "é" * 33,
    "🔥" * 12,
    "</w> hello</w> </w",
    "|startoftext| <startoftext <|x|>",
    "the quick brown fox jumps over the lazy dog",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG",
    "A centered satellite photo of annual crop land.",
    "a photo of a macaroni & cheese, a type of food.",
    "itap of my golden retriever",
    "a black and white photo of the empire state building, new york, ny",
    "Vintage 1950's Ford F-100 pickup truck, 3/4 view - $12,500 o.b.o.",
    'Women\'s Size 8.5 Nike® Air Max™ 97 "Silver Bullet"',
    "   leading, trailing   and   inner   spaces   ",
    "tab\tseparated\tvalues",
    "x̧̡̨͇͍̃̈ zalgo t̶e̷x̸t̵",
    "ﷺ ﷽ Ǆ ǅ ǆ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 𝟙𝟚𝟛",
    "ﾞ ﾟ が ｶﾞ",
]

ALPHABETS = {
    "words": "a photo of the red Cat dog's house-boat 1st 42 U.S.A. isn't over; (and) \"so\"",
    "latin": "àÁâÄåÆçÈéÊëÌíÎïÐñÒóÔõÖøÙúÛüÝþÿŒœŠšŽž€‚ƒ„…†‡ˆ‰‹›‘’“”•–—˜™ ¡¢£¤¥¦§¨©ª«¬®¯°±²³´µ·¹º»¼½¿",
    "ascii": "".join(map(chr, range(32, 127))),
    "entities": "&amp; &lt; &#39; &quot; &eacute; &nbsp; & ; # x27 amp lt gt < > &ampx &notit;",
    "world": "наука 猫の写真 고양이 صورة תמונה ภาพ नमस्ते ΩμέγαΣ ｆｕｌｌ",
    "symbols": "😀 👍🏽 ❤️ ★ → ∑ ½ ② 🇫🇷 ™ \u200d \u00a0 ' ’ ′ ` ´",
}


def drawn(count: int = 40) -> list[str]:
    """Repeatable random texts: words or characters of each alphabet, then mojibake of some."""
    chance = random.Random(20210226)
    texts = []
    for alphabet in ALPHABETS.values():
        for number in range(count):
            units = alphabet.split(" ") if number % 2 else list(alphabet)
            glue = " " if number % 4 == 1 else ""
            texts.append(glue.join(chance.choices(units, k=chance.randint(1, 24))))
    for text in texts[count * 4 :: 5]:
        texts.append(text.encode("utf-8", "surrogatepass").decode("latin-1"))
    return texts


def released_tokenizer() -> ModuleType:
    """The tokenizer module of open_clip alone, because its package needs torchvision and more."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("open_clip is not installed: see the commands at the head of this file")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Writes the file that the first argument names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/golden_bpe.py OUT.json")
    module = released_tokenizer()
    tokenizer = module.SimpleTokenizer()
    texts = list(dict.fromkeys(CHOSEN + drawn()))
    golden = {
        "open_clip_torch": importlib.metadata.version("open_clip_torch"),
        "ftfy": importlib.metadata.version("ftfy"),
        "merges_sha256": hashlib.sha256(Path(module.default_bpe()).read_bytes()).hexdigest(),
        "texts": [{"text": text, "ids": tokenizer.encode(text)} for text in texts],
    }
    lines = ",\n".join(json.dumps(entry) for entry in golden.pop("texts"))
    head = json.dumps(golden)[:-1]
    Path(sys.argv[1]).write_text(f'{head}, "texts": [\n{lines}\n]}}\n', encoding="ascii")


if __name__ == "__main__":
    main()
