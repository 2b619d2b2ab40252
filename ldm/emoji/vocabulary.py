"""The WordPiece vocabulary of the shipped model, made from its captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ldm.emoji.captions import COARSE, NEUTRAL, NOUN_TAGS, SIZED, words_of

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


_PUNCTUATION = "'-,.!?:;()\"&/#*+%$@_<>=[]{}|~^`\\"


_SUFFIXES = """
    s es ed er ers est ing ings ly y ies ied ier iest ness less ful ment ments tion tions sion
    ion ions able ible al ally ial ic ical ically ive ity ities ous ious ism ist ists ize ized
    ise ised en ens ery ary ory age ages ance ence ant ent ate ated ating ation ator ure ship
    hood dom ward wards wise like man men woman women land book ball board fish bird flower
    berry berries cake house room boat car box bag top work way line light side ck sh th ch ph
    st nd rd nt ng nk mp ll ss tt pp ff rr nn mm dd gg oo ee ea ai ou ow oi oy au aw ei ie ue
    ui an on in un ar or ir ur at et it ot ut ad id od ud ab eb ib ob ub ap ep ip op up am em
    im om um ag eg ig og ug ak ek ik ok uk el il ol ul le re te de se ce ge ne me ve ke pe be
    fe ze la ra ta da sa ca ga na ma va ka pa ba fa za lo ro to do so co go no mo vo ko po bo
    fo zo li ri ti di si ci gi ni mi vi ki pi bi fi zi lu ru tu du su cu gu nu mu vu ku pu bu
    fu zu ry ty dy sy cy gy ny my vy ky py by fy zy ble ple tle dle gle kle and ine one ane une
    ite ote ete ute ade ide ode ude ake ike oke uke ale ile ole ule ame ime ome ume ape ipe ope
    upe are ire ore ase ose use ash ish osh ush ack ick ock uck eck ank ink onk unk ang ong ung
    int ont unt ast ost ust eat eam ean ear eal oat oad oak oar oon ood ook oom oot ool ound
    out ouse ight ough
""".split()


_GENERAL = """
    a an the my your his her our their this that these those one two three four five six seven
    eight nine ten some many few more most with without in on of by at to from into onto over
    under above below behind beside between next near front inside outside around through
    against and or but not no is are was be been it its as for up down left right top bottom
    middle center centre corner side back close very so too also only just here there now then
    i you he she we they me him them photo photos photograph picture pictures image rendering
    rendition render rendered cropped painting drawing sketch illustration depiction art
    artwork style styles dark bright dirty clean good bad nice small weird large cool big
    little tiny huge giant cute pretty beautiful ugly old new young plain simple flat round
    square shiny soft hard hot cold warm wet dry full empty open closed happy sad angry funny
    smiling sleeping sitting standing running flying swimming eating drinking playing riding
    wearing holding made looking icon icons emoji emojis cartoon 3d 2d logo sticker symbol
    poster print oil watercolor watercolour pencil ink charcoal pastel acrylic pixel anime
    comic vector digital realistic abstract minimal minimalist vintage retro modern color
    colour colors colours colored coloured colorful background backgrounds wall gradient red
    green blue yellow white black pink purple orange gray grey brown teal cyan magenta violet
    gold golden silver beige tan navy maroon lime olive turquoise crimson indigo lavender light
    pale deep beach grass grassy field meadow lawn sky night starry stars star sunset sunrise
    snow snowy desert sand sandy sea ocean water underwater lake river mountain mountains
    forest woods tree trees jungle garden park city street road town village skyline building
    buildings house room kitchen table wooden wood floor desk shelf brick checkered tablecloth
    rain rainy fog cloud clouds sun moon space galaxy fire ice rock stone hill hills valley
    island cave bridge castle toy toys cup mug plate bowl bottle glass vase pot pan box bag
    backpack shirt hat cap scarf shoe shoes dress coat pillow blanket lamp chair couch sofa bed
    clock book card doll plush teddy statue figurine sculpture pattern fabric cat dog bird fish
    horse cow pig sheep duck bear lion tiger animal animals pet bug insect reptile mammal
    dinosaur monster creature fruit vegetable food drink dessert cake plant flower flowers leaf
    car truck bus train bike bicycle boat ship plane airplane aircraft rocket vehicle vehicles
    tool tools instrument guitar piano drum ball game sport medal award phone computer device
    machine camera robot key lock money coin paper pen face faces head eye eyes ear nose mouth
    hand hands foot feet body person people man woman men women boy girl child baby king queen
    hero wizard witch thing things object objects item kind part piece pair set group shape
    circle triangle heart arrow sign number letter word words metal plastic wool clay leather
    porcelain ceramic cardboard knitted crystal marble concrete steel copper bronze supplies
    household medicine weather landscape clothes office
""".split()


def build_vocabulary(texts: Iterable[str], size: int = 4000) -> list[str]:
    """WordPiece vocabulary, one token a line: specials, pieces that spell anything, whole words.

    Every word of ``texts`` becomes a token, the first seen first if ``size`` is too small; the
    word part is then sorted, so the file depends on the set of words and not on their order.
    """
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*SPECIAL_TOKENS, *_PUNCTUATION, *letters, *("##" + c for c in letters)]
    tokens += sorted({"##" + s for s in _SUFFIXES} - set(tokens))
    seen = dict.fromkeys(w for text in texts for w in words_of(text) if len(w) > 1)
    return tokens + sorted(list(seen)[: max(size - len(tokens), 0)])


def vocabulary_texts(
    labels: Iterable[str], tags: Iterable[Sequence[str]], colours: Iterable[str]
) -> list[str]:
    """What the shipped vocabulary covers, most needed first: labels of all concepts, the words of
    captions and prompts, then tags of at least two concepts or of :data:`NOUN_TAGS`."""
    counts = Counter(tag for row in tags for tag in row)
    often = sorted(t for t, n in counts.items() if n >= 2)
    captions = [*NEUTRAL, *(t for row in SIZED.values() for t in row)]
    return [
        *labels, *colours, *captions, *COARSE.values(), *_GENERAL, *sorted(NOUN_TAGS), *often,
    ]  # fmt: skip


def write_vocabulary(tokens: Sequence[str], path: Path) -> None:
    """One token a line, id = line number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
