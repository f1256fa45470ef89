"""Closed word lists and patterns of the dimensions whose values are much the same in all shops (English)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jax_rele.rationale.words import Word


def _entries(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.replace("\n", "|").split("|") if entry.strip())


_TEXTS = {
    "color": """
        amber|aqua|beige|black|blue|bronze|brown|burgundy|camo|camouflage|champagne|charcoal|cheetah print
        chocolate|clear|coral|cyan|emerald|floral|fuchsia|gold|golden|gray|green|hot pink|indigo|ivory|khaki
        lavender|leopard|leopard print|light blue|dark blue|lilac|lime|lime green|magenta|maroon|mauve|mint
        mint green|multicolor|multi color|mustard|navy|navy blue|neon|nude|off white|olive|orange|pastel|peach
        pink|plaid|plum|purple|rainbow|red|rose gold|royal blue|ruby|rust|salmon|silver|sky blue|striped|tan
        taupe|teal|tie dye|transparent|turquoise|violet|white|wine red|yellow|zebra print
        """,
    "material": """
        acrylic|alloy|aluminum|bamboo|brass|burlap|canvas|carbon fiber|cardboard|cashmere|cast iron|ceramic
        chiffon|cloth|copper|corduroy|cotton|crystal|denim|diamond|down|faux fur|faux leather|felt|fiberglass
        fleece|flannel|foam|fur|genuine leather|glass|granite|iron|jute|lace|latex|leather|linen|marble
        memory foam|merino|mesh|metal|microfiber|nylon|oak|paper|plastic|pleather|polyester|porcelain
        pu leather|pvc|quartz|rattan|resin|rubber|satin|sherpa|silicone|silk|spandex|stainless|stainless steel
        steel|sterling silver|stone|straw|suede|teak|tempered glass|titanium|tungsten|tweed|velvet|vinyl
        walnut|wicker|wood|wool
        """,
    "size": """
        big and tall|bulk|california king|cal king|double|extra large|extra long|extra small|extra wide|full
        full size|jumbo|king|king size|large|long sleeve|medium|mini|miniature|one size|oversized|petite
        plus size|pocket size|queen|queen size|short sleeve|slim fit|small|tall|tiny|travel size|twin
        twin size|twin xl|wide|x large|x small|xl|xs|xxl|xx large|xxs|xxxl|2xl|3xl|4xl|5xl|2x|3x|4x|big
        high top|high waisted|long|loose fit|oval|relaxed fit|round|skinny|square|thick|thin
        """,
    "audience": """
        adult|baby|baby boy|baby girl|boy|child|couple|female|girl|guy|her|him|infant|junior|kid|lady
        little boy|little girl|male|man|newborn|preschooler|senior|teen|teen boy|teen girl|teenage|teenager
        toddler|toddler boy|toddler girl|tween|unisex|woman|youth
        """,
    "brand": """
        acer|adidas|amazon basics|anker|apple|asics|asus|audi|bissell|black and decker|black decker|bmw|bosch
        bose|braun|breville|brother|calvin klein|canon|carhartt|casio|champion|chevrolet|chevy|cisco|coach
        coleman|columbia|converse|corsair|crocs|cuisinart|dell|dewalt|disney|dji|dove|duracell|dyson|energizer
        epson|fender|fila|fisher price|ford|fossil|funko|garmin|gibson|gillette|google|gopro|gucci|guess
        hamilton beach|hasbro|honda|honeywell|hoover|hp|huawei|huggies|husqvarna|hyundai|ikea|instant pot
        intel|jbl|jeep|john deere|kawasaki|keurig|kitchenaid|kohler|lacoste|lego|lenovo|levi|lexus|lg|logitech
        loreal|makita|marvel|mattel|maybelline|mercedes|michael kors|microsoft|milwaukee|motorola|msi|nerf
        new balance|nike|nikon|nintendo|nissan|north face|oakley|olay|otterbox|pampers|panasonic|patagonia
        philips|pioneer|playskool|polaroid|prada|puma|purina|ralph lauren|ray ban|razer|reebok|revlon|roku
        rolex|ryobi|samsung|seiko|sennheiser|sharp|shimano|skechers|sony|stanley|subaru|suzuki|tcl|timberland
        timex|tommy hilfiger|toshiba|toyota|under armour|victoria secret|vizio|volkswagen|volvo|yamaha|yeti
        xiaomi
        """,
    "model": """
        airpod|apple watch|chromebook|echo dot|fire stick|fire tv|fitbit charge|fitbit versa|galaxy
        galaxy note|galaxy tab|ipad|ipad air|ipad mini|ipad pro|iphone|ipod|kindle|kindle fire
        kindle paperwhite|macbook|macbook air|macbook pro|nintendo ds|nintendo switch|note 9|note 10|note 20
        ps3|ps4|ps5|playstation|playstation 4|playstation 5|surface pro|thinkpad|wii|xbox|xbox 360|xbox one
        xbox series x
        """,
}
VOCABULARY = {dimension: _entries(text) for dimension, text in _TEXTS.items()}
"""Values of a dimension that are known without training data."""

MODIFIERS = _entries(
    """
    adjustable|automatic|best|bluetooth|cheap|cordless|custom|cute|digital|disposable|electric|foldable
    folding|heated|heavy duty|indoor|inflatable|magnetic|natural|new|organic|outdoor|personalized|portable
    rechargeable|reusable|sexy|smart|solar|used|vintage|waterproof|wifi|wireless|christmas|halloween|birthday
    wedding|winter|summer|fall|spring|party
    """
)
"""Words that describe an item without naming what it is, who makes it, or another usual dimension."""

PREPOSITIONS = frozenset({"by", "for", "from", "in", "of", "on", "that", "to", "with", "without"})
"""Words that begin what an item is used with or for; its category comes before them."""

STOP_WORDS = frozenset({"a", "an", "and", "my", "not", "or", "the", "your"})
"""Words that are not part of a category."""

_UNIT = (
    "inch|mm|cm|m|foot|yard|mil|pound|kg|g|gram|mg|mcg|ounce|ml|liter|l|gallon|quart|qt|pint|cup|watt|w|v|volt|amp|ah"
    "|mah|hz|gb|tb|mb|piece|pack|count|ct|set|sheet|roll|pair|carat|gauge|ga|micron|psi|hp|lumen|degree|way|tier"
)
_MEASURE = re.compile(
    rf"(?:size )?\d[\d./]*(?: \d+/\d+)? ?(?:{_UNIT})"  # 12 inch, 1 1/2 inch, 16gb
    rf"|\d[\d./]* ?x ?\d[\d./]*(?: ?x ?\d[\d./]*)?(?: ?(?:{_UNIT}))?"  # 8x10, 2 x 4 x 8 foot
    r"|(?:\d+ )?\d+/\d+|size \d[\d./]*(?: \d[\d./]*)?|size [a-z]{1,2}|\d{1,2}t"  # 5/8, size 8, size dd, 3t
    r"|(?:set|pack|box) of \d+"
)
_AGE = re.compile(
    r"age \d+(?: \d+| to \d+)?|\d+(?: \d+| to \d+)? ?(?:year|month)(?: old)?(?: (?:boy|girl|kid))?"
    r"|(?:boy|girl|kid|child) age \d+(?: \d+| to \d+)?"
)
_CODE = re.compile(r"(?=.*\d)(?=.*[a-z])[a-z0-9]{3,}")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th|s|d|k|p|x|pin|in\d)|[ux]s\d+|\d+x\d+.*")
_NUMBER = re.compile(r"[a-z]?\d{1,3}[a-z]?")
_EDITION = re.compile(r"pro|plus|max|mini|xr|xs|se|ultra|lite|air|series|gen|edge|active")


def patterns(text_words: Sequence[Word]) -> list[tuple[int, int, str]]:
    """The [start, end) word positions and the dimension of every size, age and model number in a text."""
    result = []
    numbered = [any(c.isdigit() for c in word.norm) for word in text_words]
    for start in range(len(text_words)):
        for end in range(start + 1, min(start + 6, len(text_words)) + 1):
            if not any(numbered[start:end]) and text_words[start].norm != "size":
                continue
            text = " ".join(word.norm for word in text_words[start:end])
            if _MEASURE.fullmatch(text):
                result.append((start, end, "size"))
            elif _AGE.fullmatch(text):
                result.append((start, end, "audience"))
            elif end == start + 1 and is_model_number(text):
                result.append((start, end, "model"))
    return result


def is_model_number(norm: str) -> bool:
    """Whether a word mixes letters and digits as model numbers do, and is no measure, ordinal or resolution."""
    return bool(_CODE.fullmatch(norm)) and not (_MEASURE.fullmatch(norm) or _ORDINAL.fullmatch(norm))


def is_version(norm: str, name: Sequence[Word]) -> bool:
    """Whether a word after a model's name is part of it: `iphone 8 plus`, `galaxy s8`; a name has one number."""
    numbered = any(c.isdigit() for word in name for c in word.norm)
    return bool(_EDITION.fullmatch(norm) or (not numbered and _NUMBER.fullmatch(norm)))
