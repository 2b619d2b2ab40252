"""Which thing an icon draws: names of emoji, and names of icons read through by hand.

Sets of emoji call their pictures by label, by Unicode name or by a short code.  Other icons are taken if
their name is the label of an emoji that is a thing, or is in :data:`THINGS`; most of them mean a button,
not a thing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from ldm.emoji.captions import NOUN_TAGS, words_of
from ldm.emoji.sprites import NAMED_THINGS, Concept

#: subgroup of Unicode -> things, each as ``name`` or ``name=icon,icon`` where icons are called otherwise.
#: Where a name is the label of an emoji, the icons are further drawings of that; the others are things of
#: their own.
THINGS = """
animal-mammal: reindeer; hamster=hamster-face; bear=bear-face; fox=fox-face; lion=lion-face;
    unicorn=unicorn-face; elephant=circus-elephant; paw prints=paw,pet-paw
animal-bird: pigeon; frog=frog-face
animal-bug: lady beetle=ladybug; bug=computer-bug
plant-flower: tulip=tulip; rose=rose
plant-other: leaf; acorn; wheat; evergreen tree=pine-tree,pine,evergreen; palm tree=coconut-tree,palm;
    deciduous tree=tree; seedling=sapling,sprout; potted plant=potted-flower; cannabis
    leaf=cannabis-leaf,drugs-cannabis
food-fruit: apple=apple-fruit,apple-one; cherries=cherry,fruit-cherry; banana=fruit-banana;
    watermelon=fruit-watermelon; tangerine=orange,orange-one
food-vegetable: radish; scallion; beet=vegetables-beet; peas; eggplant=aubergine; hot
    pepper=chili,chilipepper; coffee bean=coffee-bean; macadamia nut=macadamia-nut
food-prepared: noodles; barbecue grill=barbecue-grill,barbecue,grill-bbq,grill; toast; bread=bread-loaf;
    hot pot=hot-pot; cheese wedge=cheese; poultry leg=chicken-leg,drumstick;
    hamburger=burger,hamburger-one; french fries=fast-food-french-fries; egg=animal-products-egg,egg-one
food-asian: sushi=seafood-sushi; cooked rice=rice; squid=seafood-squid
food-sweet: marshmallow; candy cane=candy-cane; easter egg=easter-egg; painted egg=painted-eggshell;
    doughnut=donut; shortcake=cake-slice; soft ice cream=ice-cream-cone,icecream-cone; birthday cake=cake
drink: cola; milkshake; milk carton=milk-carton; soda bottle=soft-drinks-bottle; bottle; water
    bottle=water-bottle; champagne glass=champagne-glass; glass of milk=milk; cocktail
    glass=cocktail,cocktail-glass; wine glass=wine; beer mug=beer,beer-glass,beer-pitch,glass-beer; hot
    beverage=coffee-mug,coffee,tea-cup,tea-drink; teapot=tea-pot
dishware: kettle; frying pan=frying-pan; cooking pot=cooking-pot,pot; rolling pin=rolling-pin; fork and
    knife=fork-knife, knife-fork; spatula=kitchenware-spatula; chopping board=chopping-board; measuring
    cup=measuring-cup; goblet=goblet-full,goblet; thermos=thermos-cup; kitchen knife=knife
household: oven; microwave=microwave,microwave-oven,microwaves; refrigerator; toaster; lamp; desk
    lamp=desk-lamp,office-desk-lamp; floor lamp=floor-lamp; lighter; gas stove=gas-stove,stove-gas-pot;
    washing machine=washing-machine,laundry-washing-machine; vacuum cleaner=vacuum-cleaner; electric
    iron=electric-iron,iron; hair dryer=hair-dryer; hair brush=hair-brush; comb; towel; toilet
    paper=toilet-paper; sofa; armchair; stool; bookshelf=bookshelf,book-library-shelf,shelf-books;
    cabinet=cabinet, kitchen-cabinet; filing cabinet=filing-cabinet,archive-drawer;
    desk=desk,office-desk,desk-one; crib=crib,baby-crib,cradle; office chair=office-chair; folding
    chair=camping-chair; coat hanger=hanger,coat-hanger; fan; fireplace; coffee
    machine=coffee-machine,coffee-espresso-machine; oven glove=oven-glove; vase; picnic
    basket=picnic-basket; laundry basket=laundry-basket; shower=shower-head; water tap=water-tap; wall
    socket=wall-socket; wastebasket=bin,trash,garbage-bin,trash-can,recycle-bin; light
    bulb=bulb,lightbulb; pacifier; stroller=stroller,baby-stroller,baby-cart; rattle; bath
    towel=bath-towel; shopping basket=shopping-basket; shopping cart=shopping-cart,shopping-cart-trolley;
    barrel=barrel,wine-barrel; piggy bank=piggy-bank,saving-piggy-bank; rocking horse=rocking-horse; spray
    can=spray,color-spray,spray-paint; perfume; mop; bucket=paint-bucket,color-bucket; candle=spa-candle
clothing: bow tie=bow-tie; beanie=beanie,woolen-hat; belt; boot=boot,boots; billed
    cap=baseball-cap,cap,round-cap; hoodie=clothes-hoodie; cardigan=clothes-cardigan;
    sweater=clothes-sweater,sweater; gloves=clothes-gloves; turtleneck=clothes-turtleneck;
    windbreaker=clothes-windbreaker; trousers=clothes-pants,trousers; skirt=short-skirt; vest=vest;
    helmet; straw hat=straw-hat; top hat=magic-hat,tall-hat,hat-tall,show-hat-magician; graduation
    cap=bachelor-cap,mortarboard,degree-hat; chef hat=chef-hat; nurse cap=nurse-cap,nurse-hat;
    necktie=tie; briefs=underwear,clothes-briefs; necklace=necklace,diamond-necklace;
    ring=diamond-ring,ring-one; running shoe=sneakers; high-heeled shoe=heels,high-heeled-shoes;
    glasses=eyeglasses; theater mask=theater-mask,show-theater-mask-happy; jacket=men-jacket;
    coat=women-coat; wallet=wallet,money-wallet,money-wallet-open; coin purse=coin-purse,money-coin-purse;
    wedding dress=wedding-dress; onesie=onesies; romper; diapers=diapers,clothes-diapers; ice
    skate=skates,clothes-skates,skate; gem stone=diamond,gem,jewelry; football
    helmet=american-football-helmet; backpack=school-bag,schoolsatchel,school-backpack;
    handbag=purse,products-purse,women-bag
science: flask=flask,erlenmeyer-flask,lab-flask-experiment; molecule; test tube=lab-tube,cuvette;
    satellite antenna=satellite-dish,satellite; dna=dna-strand; atom symbol=atom; barometer
medical: bandage; adhesive bandage=bandage-one; first aid kit=aid-kit,medical-box,first-aid-kit; medicine
    bottle=medicine-bottle; hospital bed=hospital-bed,sickbed; oxygen tank=oxygen-tank; pill=pills; manual
    wheelchair=wheelchair,disability-wheelchair; tooth=dentistry-tooth;
    crutch=medical-instrument-walking-aid; syringe=injection; brain=brain-cognitive
musical-instrument: harp; piano=piano,instruments-piano,instrument-classical-piano;
    tambourine=instrument-tambourine; drum=drum-one; accordion=instrument-accordian;
    saxophone=instrument-saxophone; guitar=modern-music-electric-guitar,modern-music-bass-guitar;
    gramophone=gramophone,phonograph,vinyl-record-gramophone; metronome=music-metronome;
    drums=modern-music-drums
music: vinyl record=vinyl-record,record-disc,record; record player=record-player,vinyl-record-player;
    loudspeaker=speaker-stand; musical note=music-note;
    radio=radio-retro,radio-stereo,radio-antenna-handle; microphone=mic,microphone-music;
    videocassette=cassette,cassette-tape,tape-cassette; headphone=headphones,headset,headphones-cable
computer: monitor=monitor,desktop-monitor; computer mouse=mouse,mouse-one,mouse-wireless; tablet;
    typewriter=typewriter,content-typewriter,content-typing-machine; scanner; webcam;
    router=router,network-router-signal; hard drive=hard-drive,hard-disk,hdd,harddisk,hard-drive-exertnal;
    flash drive=flash-drive,usb-drive,u-disk,memory-flash-drive; memory
    card=memory-card,sd-card,memory-sd-card; sim card=sim-card; computer
    chip=cpu,microchip-board,computer-chip-core; projector=projector,presentation-projector; video
    game=gamepad,game-console,game-handle, video-game-controller; vr
    headset=vr-headset,vr-glasses,vr-goggle; laptop=laptop-computer; server;
    calculator=calculator,accounting-calculator; desktop computer=desktop-computer-pc,computer-one;
    keyboard=keyboard-wireless; smart watch=smartwatch,smart-watch,smart-watch-square,smart-watch-circle
phone: mobile phone=smartphone,cell-phone,cellphone,mobile-phone-smartphone,phone-one;
    telephone=home-telephone,phone-retro; phone booth=phone-booth; fax machine=fax,fax-machine-paper-print
light-video: television=tv,tv-one,smart-tv,vintage-tv; remote control=remote-control,modern-tv-remote;
    video camera=camcorder,handheldvideocamera, camera-studio;
    camera=photo-camera,compact-camera,camera-one; film reel=film-reel,movies-reel,photo-reel; film
    roll=film-roll; clapper board=clapboard,movie-board,movies-clapboard;
    flashlight=torch,outdoors-flashlight; surveillance
    camera=surveillance-camera,surveillance-cameras-one; drone=drone,delivery-drone; disco
    ball=night-club-disco-ball; magnifying glass tilted left=magnifying-glass,search-magnifier;
    lantern=lantern; spotlight=light-spotlight; movie camera=camera-movie
tool: anvil; trowel; drill=electric-drill,hammer-drill,drill; wrench=spanner,settings-wrench; paint
    roller=paint-roller,roller,roller-paintbrush; paintbrush=paint-brush,cosmetic-brush; measuring
    tape=measuring-tape,tape-measure; toolbox=tool-box; lawn mower=lawn-mower; gavel=gavel,justice-hammer;
    fishing hook=fishing-hook; hook; shovel=shovel-one; gear=cog,settings-cog;
    screwdriver=settings-screwdriver; saw=saw; fire extinguisher=safety-fire-extinguisher;
    chain=link-chain; scissors=scissor
office: stapler=stapler,office-stapler; eraser=eraser; highlighter=high-light-pen,highlighter;
    diploma=diploma,certified-diploma; blackboard=blackboard,chalkboard,black-board; globe; triangular
    ruler=triangle-ruler; straight ruler=ruler; file folder=folder,office-folder; stamp;
    scroll=script-paper; abacus=accounting-abacus; clipboard=empty-clipboard,copy-paste-clipboard;
    printer=print; compass=drawing-compass,compasses; artist palette=palette,paint-palette;
    crayon=color-crayon; paperclip=paper-clip,link-paperclip; pushpin=pin; cash register=cash-register;
    price tag=price-tag,tag; barcode=barcode,bar-code; calendar=calendar-date
writing: quill=quill,quill-pen,edit-quill-feather; pen=pen; pencil=edit-pencil; fountain pen=fountain-pen
book-paper: newspaper=newspaper-fold,news-paper; open book=book-open,book-open-bookmark; closed
    book=book-one; notebook=notes-book; bookmark=bookmark-tab
money: coins=accounting-coins,coins-stack,coin-stack,money-coin-stack;
    safe=safe,safe-vault,vault,saving-safe,safe-box,safebox; gold bars=gold-bars,wealth-gold-bars; credit
    card=bank-card; money bag=money-bag-dollar; cash=banknotes
award-medal: sports medal=medal,award-medal; trophy=award-trophy
game: game die=dice,dices,game-dice; chess knight=chess-knight; chess bishop=chess-bishop; chess
    king=chess-king; pinwheel; pool 8 ball=billiards,billiard-ball; casino chip=casino-chip; puzzle
    piece=puzzle,jigsaw; bullseye=target,dart,darts,dartboard; slot machine=casino-777-slot-machine;
    crystal ball=crystal-ball; magic wand=wand,magic-wand,design-tool-magic-wand; kite=kite; building
    blocks=module-building-blocks
sport: dumbbell=dumbbell,dumbell,dumbbel,weight-training; treadmill; golf ball=golf-ball; flag in
    hole=golf-hole,golf-course; ring buoy=lifebuoy,safety-float; baseball bat=baseball-bat;
    bowling=bowling-set; jump rope=rope-skipping,fitness-jumping-rope; snorkel=snorkel-mask,snorkle;
    volleyball=volleyball-ball; american football=rugby; skateboard=skateboard-one; boxing glove=boxing;
    exercise bike=fitness-bicycle; tennis=tennis-ball; soccer ball=football-ball
event: balloon=party-balloon,balloon-one; wrapped gift=gift,gift-box,giftbox,present,present-box; party
    popper=confetti-popper,party-confetti,confetti; ticket=ticket-one; christmas tree=christmas-tree-one;
    red envelope=red-envelopes; party hat=party-hat
transport-ground: truck=truck; delivery truck=delivery-truck,truck-delivery,shipping-truck; fire
    engine=fire-truck,firefighter-truck,public-service-firefighter-truck; police car=police-car; racing
    car=racecar; motorcycle=motorbike; bicycle=bike,bicycle-bike; unicycle; forklift; excavator;
    automobile=car,car-one,car-retro; taxi=car-taxi; caravan; metro=subway; train=train; auto
    rickshaw=tuk-tuk; steering wheel=steering-wheel; fuel pump=gas-station; vertical traffic
    light=traffic-light; traffic cone=traffic-cone,road-cone,cone; barrier=barrier; bus=tour-bus,bus-one;
    ambulance=ambulance-one; high-speed train=high-speed-rail; aerial tramway=cable-car,cableway;
    articulated lorry=semi-truck; tractor=tractor
transport-air: airship; hot air balloon=aircraft-hot-air-balloon,hot-air-balloon;
    airplane=plane,airport-plane; helicopter=aircraft-chopper; space shuttle=space-shuttle; flying
    saucer=ufo; paper plane=send-email-paper-plane,paper-plane; rocket=rocket-one;
    parachute=parachute-drop
transport-water: sailboat=sailing,sail-ship; cargo ship=cargo-ship,shipment-cargo-boat; ship=ship; paper
    boat=paper-ship; motor boat=yacht
place-building: bridge; lighthouse=lighthouse,light-house; windmill;
    house=home,home-chimney,house-chimney,house-one; warehouse=warehouse; greenhouse=green-house; wind
    turbine=wind-turbine; factory=factory-building; hospital=hospital-building; bank=saving-bank;
    shop=shop,store; school=school-building; castle=amusement-park-castle; kiosk=farmers-market-kiosk
place-other: tent=camping-tent; circus tent=circus-tent-one; pagoda=pagoda,chinese-pavilion;
    pyramid=pyramid; taj mahal=taj-mahal; great wall=great-wall; ferris wheel=amusement-park-ferris-wheel;
    campfire=campfire; tokyo tower=eiffel-tower,paris-tower; treasure chest=treasure-chest; windsock
sky-weather: comet=meteor; cyclone=hurricane; droplet=raindrop,water-drop,drop,blood-drop-one; ringed
    planet=planet,astronomy-planet-ring; lightning=lightning; snowflake=weather-snowflake;
    sun=weather-sun,clear-day,sunny; sun behind cloud=partly-cloudy-day,day-cloud; cloud with
    rain=rain,rain-cloud,light-rain,heavy-rain; cloud with snow=snow,overcast-snow; cloud with
    lightning=thunderstorms,lightning-cloud,cloud-storm; crescent moon=clear-night; solar
    eclipse=solar-eclipse; umbrella with rain drops=rain-umbrella; first quarter moon=moon-first-quarter;
    last quarter moon=moon-last-quarter; full moon=moon-full; waxing crescent moon=moon-waxing-crescent;
    waning crescent moon=moon-waning-crescent; waxing gibbous moon=moon-waxing-gibbous; waning gibbous
    moon=moon-waning-gibbous; planet earth=earth; cloud with lightning and rain=thunderstorms-rain
time: clock=clock,time-clock-circle,big-clock; alarm clock=alarm,alerts-alarm-clock; hourglass
    done=hourglass,hourglass-full,time-hourglass-triangle; stopwatch=time-stopwatch;
    watch=time-wrist-watch; sundial=sundial
body-parts: moustache=moustache,english-mustache; fingerprint; mouth=lips,mouth-lip; eye=view-eye;
    ear=ear-hearing; nose=nose-smell; footprints=baby-feet; skull=delete-skull
lock: locked=lock,padlock-square,lock-one,lock-closed; unlocked=unlock,lock-open; key=key-one;
    keyhole=keyhole,keyhole-circle
other-object: lightning rod=lightning-rod; fire alarm=fire-alarm;
    megaphone=bullhorn,megaphone-loud,advertising-megaphone; bell=alert-bell; bellhop bell=service-bell;
    battery=charge-battery; electric plug=plug,power-supply-plug; lipstick=make-up-lipstick; nail
    polish=nail-varnish; mascara; mirror=make-up-mirror; razor=straight-razor;
    package=box,parcel,shipping-box,shipment-box; e-mail=email,mail; shield=shield-one; ladder=ladder-one;
    broom=broom-one; tombstone; bomb=bomb-one; flag; crown=crown-one,vip-crown-queen; red
    heart=like-heart; robot=robot-one,robot-face; binoculars=binocular,binoculars,view-binocular;
    speaker=speaker,speaker-one; basket=basket; cage=cage; hook and rope=hook-rope
"""

#: labels that an icon's name means otherwise: the name of a button or of another thing
NOT_THE_EMOJI = frozenset(
    """bat bell-with-slash boar bookmark bookmark-tabs card-index cinema computer crane custard desktop
    file-cabinet goat hole inbox-tray information japan knot label link mate moon mouse orange outbox-tray
    ox pager pie placard ram rat receipt ring rooster seal spider swan web window""".split()
)
#: set -> icons, without their variant, that are broken or show something else than they are called
WRONG = {
    "icon-park": "anchor rock seat lamp monitor star tag cake diamond camera mirror",
    "marketeq": "cloud clock",
    "streamline-cyber-color": "flag",
    "flat-ui": "safe",
    "streamline-color": "scanner crutch dressing-table tag",
    "streamline-flex-color": "scanner crutch", "streamline-plump-color": "scanner crutch",
    "streamline-sharp-color": "scanner crutch",
    "fluent-color": "table",
    "meteocons": "rain snow overcast-snow overcast-rain hail",
    "fxemoji": "tramcar",
    "streamline-emojis": "turkey japan",
}  # fmt: skip
_GROUP_OF = {
    "animal": "animals-nature", "plant": "animals-nature", "food": "food-drink", "drink": "food-drink",
    "dishware": "food-drink", "transport": "travel-places", "place": "travel-places", "sky": "travel-places",
    "time": "travel-places", "award": "activities", "game": "activities", "sport": "activities",
    "event": "activities", "body": "people-body",
}  # fmt: skip
_BODY, _SKIPPED = ("body-parts", "heart"), ("time",)


def letters(name: str) -> str:
    """A name without what sets write differently: ``red-apple``, ``red_apple`` -> ``redapple``."""
    return re.sub("[^a-z0-9]", "", name.lower())


def plain(name: str) -> str:
    """An icon's name without the number or the letter of its variant: ``car-flat-2`` -> ``car``."""
    while (short := re.sub(r"-(\d+|flat|fill|alt|one|two|three|four|five|remix)$", "", name)) != name:
        name = short
    return name


def things() -> dict[str, Concept]:
    """Letters of an icon's name -> the thing of :data:`THINGS`, whose code is ``thing-...``."""
    found: dict[str, Concept] = {}
    subgroup = ""
    for entry in re.split(r";|\n(?=\S)", THINGS.strip()):
        if match := re.match(r"\s*([a-z-]+):", entry):
            subgroup, entry = match[1], entry[match.end() :]
        label, _, icons = (part.strip() for part in " ".join(entry.split()).partition("="))
        group = _GROUP_OF.get(subgroup.split("-")[0], "objects")
        concept = Concept("thing-" + label.replace(" ", "-"), label, (), group, subgroup)
        for icon in icons.split(",") if icons else [label]:
            found[letters(icon)] = concept
    return found


class Names:
    """What the names of icons call, given the emoji ``concepts`` and their short codes by hex code."""

    def __init__(self, concepts: Sequence[Concept], shortcodes: Mapping[str, Iterable[str]]) -> None:
        self._labels = {letters(c.label): c for c in concepts}
        tiers = [self._labels, _only({c.hex: [_unicode_name(c.hex)] for c in concepts}, concepts)]
        tiers.append(_only(shortcodes, concepts))
        self._emoji: dict[str, Concept] = {}
        for tier in reversed(tiers):  # labels come last and win
            self._emoji |= tier
        self._things = {name: self._labels.get(letters(c.label), c) for name, c in things().items()}

    def find(self, title: str, kind: str, name: str) -> Concept | None:
        """What the picture ``name`` of the set ``title``, of that kind, shows; None: not known, or wrong."""
        if plain(name) in WRONG.get(title, "").split():
            return None
        if title == "meteocons" and not name.endswith("-fill"):
            return None  # its lines move: some are not there in a still picture
        return self.emoji(name) if kind == "emoji" else self.icon(name)

    def emoji(self, name: str) -> Concept | None:
        """What a picture of a set of emoji shows, whose name is ``name``."""
        name = re.sub(r"-\d+$", "", name) if letters(name) not in self._emoji else name
        return self._emoji.get(letters(name))

    def icon(self, name: str) -> Concept | None:
        """What an icon of another set shows, or None: not a thing, or not known as one."""
        for short in (name, plain(name)):
            if concept := self._things.get(letters(short)):
                return concept
        concept = self._labels.get(letters(plain(name)))
        if concept is None or plain(name) in NOT_THE_EMOJI:
            return None
        thing = concept.group in NAMED_THINGS and concept.subgroup not in _SKIPPED
        return concept if thing or concept.subgroup in _BODY else None


def _unicode_name(code: str) -> str:
    return "" if "-" in code else unicodedata.name(chr(int(code, 16)), "")


def _only(names: Mapping[str, Iterable[str]], concepts: Sequence[Concept]) -> dict[str, Concept]:
    """Letters of the names that one concept alone has."""
    known = {c.hex: c for c in concepts}
    rows = [(letters(n), known[code]) for code, row in names.items() if code in known for n in set(row)]
    counts = Counter(name for name, _ in dict.fromkeys((n, c.hex) for n, c in rows))
    return {name: concept for name, concept in rows if name and counts[name] == 1}


def is_near(label: str, concept: Concept) -> bool:
    """Whether a thing called ``label`` may be ``concept`` by another name, so that it is held out with it.

    It is one of the concept's tags, or shares a word with its label or with a tag that names it; the end of
    a word counts too (``bag``, ``handbag``).
    """
    if label in concept.tags:
        return True
    own = {_stem(w) for w in words_of(label)}
    theirs = {_stem(w) for w in words_of(concept.label)}
    theirs |= {_stem(t) for t in concept.tags if t in NOUN_TAGS}
    return any(a == b or _ends(a, b) or _ends(b, a) for a in own for b in theirs)


def _stem(word: str) -> str:
    return word.rstrip("s")


def _ends(part: str, word: str) -> bool:
    return len(part) >= 3 and word.endswith(part)


def held_out(concepts: Iterable[Concept], codes: Collection[str]) -> frozenset[str]:
    """``codes``, and those of the things of no emoji that are near to one of these."""
    rows = list(concepts)
    out = [c for c in rows if c.hex in codes]
    own = [c for c in rows if c.hex.startswith("thing-")]
    return frozenset(codes) | {c.hex for c in own if any(is_near(c.label, o) for o in out)}
