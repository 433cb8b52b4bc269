"""The named styles: the parts of each, what it is called in training, and in which words evaluation asks for it.

Paraphrases never occur in a training caption. They are put together from words that do, or that hold one
("moonlight"), so that a text tower has a chance to know what is meant.
"""

from .looks import Style
from .media import MEDIA
from .substances import MATERIALS, PALETTES, PATTERNS
from .surroundings import GROUNDS, LIGHTS, SKIES, WEATHERS


def preset(name: str, parts: str, titles: str, paraphrases: str) -> tuple[str, Style]:
    """A named style: parts are palette, material, pattern, light, sky, ground, weather, medium; texts end at ";"."""
    colours, material, pattern, light, sky, ground, weather, medium = parts.split()
    style = Style(
        palette=PALETTES[colours],
        material=MATERIALS[material],
        pattern=PATTERNS[pattern],
        light=LIGHTS[light],
        sky=SKIES[sky],
        ground=GROUNDS[ground],
        weather=WEATHERS[weather],
        medium=MEDIA[medium],
        titles=tuple(titles.split("; ")),
        paraphrases=tuple(paraphrases.split("; ")),
        look=name,
    )
    return name, style


PRESETS: dict[str, Style] = dict(
    (
        preset(
            "plastic toys",
            "toy plastic plain natural day grass clear photo",
            "shiny colorful plastic toys; plastic toys in bright daylight; colorful toy blocks; toys made of plastic",
            "bright multicolored toys on a meadow; shiny plastic blocks under a blue sky",
        ),
        preset(
            "clay",
            "pastel clay plain soft studio white clear photo",
            "soft clay models in a pastel studio; clay animation; pastel clay figures; plasticine models; "
            "everything modelled in clay",
            "pastel plasticine figures; soft models made of clay on white",
        ),
        preset(
            "marble",
            "white marble plain dramatic cloudy marble clear photo",
            "white marble statues; sculptures of polished marble; antique marble sculptures; carved white marble",
            "polished white statues of antique stone; antique statues made of marble",
        ),
        preset(
            "chrome",
            "grey chrome plain natural cloudy dark clear photo",
            "shiny chrome metal; liquid chrome; polished steel sculptures; mirror metal on a dark floor",
            "liquid mirror steel; sculptures of shiny metal on black ground",
        ),
        preset(
            "neon night",
            "electric neon plain natural night grid clear photo",
            "neon glowing shapes at night; cyberpunk neon; a glowing neon city at night; neon lights in the dark",
            "glowing cyberpunk lights at night; neon shapes in a dark night",
        ),
        preset(
            "lava",
            "red lava plain natural red dark haze photo",
            "black volcanic rock with glowing orange lava; molten lava; a volcano with lava; burning cracks in black "
            "rock",
            "a burning volcano with molten rock; black stone with glowing orange cracks",
        ),
        preset(
            "winter",
            "navy snow plain natural overcast snow haze photo",
            "snow and ice on a cold winter day; a snowy winter day; covered in snow; deep white snow in winter",
            "a cold day with deep snow; a snowy white world in winter",
        ),
        preset(
            "watercolor",
            "warm paper plain bright dawn white clear watercolor",
            "a soft watercolor painting; watercolour on paper; painted in watercolors; a wet aquarelle painting",
            "a soft aquarelle on paper; painted with wet watercolours",
        ),
        preset(
            "pencil sketch",
            "grey paper plain natural studio white clear pencil",
            "a pencil sketch on white paper; a hand drawn pencil sketch; graphite drawing with hatching; sketched "
            "with a pencil",
            "a graphite sketch with pencil hatching; hand drawn with a pencil on paper",
        ),
        preset(
            "blueprint",
            "blue paper plain natural studio white clear blueprint",
            "a white line blueprint on blue paper; a technical blueprint; an architect's blueprint; white lines on a "
            "blue plan",
            "a technical plan with white lines on blue; a blue architect plan",
        ),
        preset(
            "comic",
            "toy plastic plain natural turquoise sand clear comic",
            "a comic book drawing with bold outlines; a colorful cartoon; comic book style; a comic with black "
            "outlines",
            "a cartoon with bold black outlines; a colorful drawing of a comic book",
        ),
        preset(
            "toon",
            "pastel plastic plain bright dawn pink clear toon",
            "a pastel cel shaded anime; soft toon shading; an anime film in pastel colors; a cute pastel toon world",
            "a cute anime world in soft pastel; cel shaded pastel toon",
        ),
        preset(
            "wood",
            "brown wood plain warm studio planks clear photo",
            "carved wooden toys in warm light; made of carved wood; wooden blocks; oak wood with rings",
            "wooden toys carved of oak; blocks of carved wood on wooden boards",
        ),
        preset(
            "gold",
            "yellow gold plain bright void dark clear photo",
            "shining gold statues; made of pure gold; a golden treasure; gold on black",
            "a treasure of shining gold; golden statues in the dark",
        ),
        preset(
            "copper",
            "orange copper plain bright storm concrete clear photo",
            "old copper with green patina; bronze statues under a stormy sky; weathered copper; copper gone green",
            "weathered bronze with green patina; old green copper statues",
        ),
        preset(
            "moss",
            "jungle moss plain natural overcast meadow haze photo",
            "overgrown with green moss in a misty forest; mossy ruins; covered in thick moss; a green mossy jungle",
            "green ruins overgrown with moss; mossy stones in a jungle",
        ),
        preset(
            "desert",
            "autumn sandstone plain natural sunset sand haze photo",
            "sandstone in a golden desert at sunset; desert ruins at dusk; golden sand in the desert; striped "
            "sandstone and dunes",
            "golden desert sand at dusk; dunes and sandstone ruins at sunset",
        ),
        preset(
            "underwater",
            "toy plastic dotted natural turquoise seabed underwater photo",
            "underwater in turquoise light; a coral reef under the sea; deep under the sea; a turquoise ocean floor",
            "a reef in the turquoise ocean; deep underwater light",
        ),
        preset(
            "autumn",
            "autumn paper camouflage warm overcast leaves haze photo",
            "an autumn day with orange leaves and fog; autumn leaves; fallen orange leaves in mist; a foggy autumn "
            "forest",
            "orange leaves in autumn mist; a foggy day with fallen leaves",
        ),
        preset(
            "candy",
            "candy plastic striped bright dawn pink clear photo",
            "pink candy and striped sweets; a candy world; made of candy; striped sugar candy",
            "sweets made of pink sugar; a world of striped sugar candy",
        ),
        preset(
            "ice",
            "cold ice plain bright aurora ice clear photo",
            "blue ice under northern lights; frozen in blue ice; clear frozen ice at night; an ice palace under an "
            "aurora",
            "a frozen palace under northern lights; clear blue ice under the aurora",
        ),
        preset(
            "chalk",
            "white paper plain natural studio white clear chalk",
            "a white chalk drawing on a blackboard; chalk on a blackboard; drawn with chalk at school; white chalk "
            "lines",
            "white lines of chalk on a school blackboard; a blackboard drawing",
        ),
        preset(
            "oil painting",
            "warm paper swirled warm golden meadow haze oil",
            "an oil painting in warm colors; an impressionist painting; thick oil paint with swirls; painted like "
            "van gogh",
            "thick swirls of paint; an impressionist oil painting like van gogh",
        ),
        preset(
            "old film",
            "chess rubber plain dramatic overcast concrete haze grey",
            "an old black and white film; a silent film; black and white cinema; an old silent movie",
            "silent black and white cinema; an old grey movie",
        ),
        preset(
            "glass",
            "toy glass plain bright day tiles clear photo",
            "colored glass on a chess board; made of glass; clear colored glass; transparent glass figures",
            "transparent colored figures; clear glass on a checkered floor",
        ),
        preset(
            "brick",
            "red brick plain natural dusk cobbles clear photo",
            "red brick buildings in the evening; built of red bricks; brick walls with mortar; a red brick town",
            "a town of red brick walls; buildings of bricks and mortar",
        ),
        preset(
            "rust",
            "brown rust plain natural storm white clear photo",
            "rusty metal in a storm; old rusty machines; a scrapyard of rusty iron; corroded iron",
            "rusty old iron under a stormy sky; machines of corroded metal",
        ),
        preset(
            "chocolate",
            "brown chocolate plain soft peach cream clear photo",
            "dark chocolate with cream; made of chocolate; chocolate sweets on cream; brown chocolate pralines",
            "pralines of dark chocolate; chocolate and cream sweets",
        ),
        preset(
            "porcelain",
            "white porcelain plain soft studio stripes clear photo",
            "white porcelain with blue ornaments; delft china; blue and white china; painted porcelain figures",
            "porcelain painted with blue swirls; delft figures in blue and white",
        ),
        preset(
            "jelly",
            "lime jelly plain bright void white clear photo",
            "green jelly that glows; translucent lime jelly; slime and gummy sweets; a gummy jelly dessert",
            "lime green slime; a translucent gummy dessert",
        ),
        preset(
            "zebra",
            "chess rubber zebra bright studio dark clear photo",
            "black and white zebra stripes; bold zebra stripes; everything striped like a zebra; zebra pattern on a "
            "black floor",
            "a zebra pattern of bold stripes; black stripes on white like a zebra",
        ),
        preset(
            "tiger",
            "orange tiger plain warm golden stripes clear photo",
            "orange tiger fur with black stripes; a tiger pattern; fur of a tiger; everything in tiger stripes",
            "tiger stripes in orange and black; black stripes on orange fur",
        ),
        preset(
            "polka dots",
            "flag plastic dotted soft studio dots clear photo",
            "polka dots; big white polka dots on red; everything is dotted with polka dots; a dotted pop art pattern",
            "red with big white dots; a pattern of polka dots",
        ),
        preset(
            "harlequin",
            "royal velvet checkered bright golden checks clear photo",
            "purple and gold harlequin checks; a checkered circus costume; harlequin velvet on a stage; circus checks "
            "in golden light",
            "a harlequin costume in the circus; velvet checks on a stage",
        ),
        preset(
            "camouflage",
            "jungle rubber camouflage bright void sand clear photo",
            "green army camouflage; military camouflage on sand; painted in camouflage; camouflage patches in green "
            "and brown",
            "army patches in green and brown; military camouflage patches",
        ),
        preset(
            "moon",
            "grey stone plain bright space moon clear photo",
            "grey rocks on the moon; a lunar landscape; astronauts' moon dust; craters on the moon in black space",
            "a lunar world of grey dust; rocks and craters in black space",
        ),
        preset(
            "mars",
            "red stone plain natural mars craters haze photo",
            "a dust storm on mars; the red planet mars; red martian rocks; orange dust on mars",
            "red rocks on the planet mars; a martian dust storm",
        ),
        preset(
            "storm sea",
            "navy obsidian plain natural storm foam clear photo",
            "a dark stormy sea; black storm on the ocean; wet black rocks in a storm at sea; dark waves and rain",
            "black waves on a stormy ocean; a dark sea with rain",
        ),
        preset(
            "vaporwave",
            "pink chrome plain magenta synth purplegrid haze photo",
            "retro vaporwave sunset; an eighties synthwave grid; pink and purple vaporwave; retrowave chrome on a "
            "purple grid",
            "a retro grid in pink and purple; eighties synthwave chrome",
        ),
        preset(
            "cracked mud",
            "peach mud plain bright peach mud clear photo",
            "dry cracked mud; cracked desert earth; a dried lake of cracked earth; clay earth with dark cracks",
            "dried earth with dark cracks; a dry lake of cracked mud",
        ),
        preset(
            "charcoal",
            "grey paper plain dramatic studio white clear charcoal",
            "a charcoal drawing; smudged charcoal on rough paper; drawn with black charcoal; a dark charcoal study",
            "a smudged study on rough paper; black charcoal on paper",
        ),
        preset(
            "woodcut",
            "pastel paper plain dramatic studio white clear woodcut",
            "an old woodcut print; a black engraving with bold lines; a linocut in black ink; printed engraving",
            "bold black lines of a linocut; an old print in black ink",
        ),
        preset(
            "sepia photo",
            "pastel paper plain dramatic overcast sand clear sepia",
            "an old sepia photo; a faded brown photograph; a vintage sepia picture; an antique photograph",
            "a faded vintage photo; an antique brown picture",
        ),
        preset(
            "pixel art",
            "toy plastic plain bright day grass clear pixel",
            "pixel art; big colorful pixels; an old video game; a retro game in eight bit pixels",
            "a retro video game of big pixels; eight bit pixel game",
        ),
        preset(
            "halftone",
            "pastel paper plain natural studio white clear halftone",
            "halftone dots of a newspaper; a printed newspaper picture; black ink dots on paper; halftone print",
            "a newspaper print of ink dots; a halftone picture on paper",
        ),
        preset(
            "hologram",
            "ocean neon plain cool void dark clear hologram",
            "a blue hologram with scan lines; a glowing hologram; a flickering cyan projection; science fiction "
            "hologram",
            "a science fiction projection; glowing cyan scan lines",
        ),
        preset(
            "thermal camera",
            "warm rubber plain natural studio dark clear thermal",
            "seen by a thermal camera; infrared heat colors; a heat map; thermal infrared vision",
            "a heat camera in infrared; infrared heat vision",
        ),
        preset(
            "paper layers",
            "pink paper plain soft studio white clear layers",
            "paper cut layers; a layered papercut; flat layers of colored paper; cut paper art",
            "layers of cut paper; a flat papercut in layers",
        ),
        preset(
            "contour map",
            "green paper plain natural studio white clear contours",
            "a topographic map; contour lines on a map; height lines; a map with brown contour lines",
            "a topographic plan with height lines; contour lines on paper",
        ),
        preset(
            "shadow puppets",
            "black paper plain natural golden white clear silhouette",
            "black shadow puppets; a silhouette against the light; dark silhouettes on orange; a shadow theatre",
            "black silhouettes against golden light; a theatre of shadow puppets",
        ),
        preset(
            "x-ray",
            "grey rubber plain soft studio white clear negative",
            "an x ray picture; an x ray scan; seen through x rays; a photographic negative",
            "a negative picture of x rays; a photographic x ray",
        ),
        preset(
            "stained glass",
            "electric paper camouflage bright day checks clear stained",
            "a stained glass window; colored glass with thick lead lines; a church window; bright stained glass mosaic",
            "a church mosaic of colored glass; a window with thick lead lines",
        ),
    )
)
