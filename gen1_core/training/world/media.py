"""Media: what the picture is made with."""

from .parts import Colour, Medium, rgb


def ramp(codes: str) -> tuple[Colour, ...]:
    """Colours from dark to bright, or from far to near."""
    return tuple(rgb(code) for code in codes.split())


PHOTO = Medium(words=("a photo of", "a video of", "a film of", "a picture of", "a clip of", ""))
MEDIA = {
    "photo": PHOTO,
    "comic": Medium(
        words=("a comic of", "a comic book drawing of", "a cartoon of"),
        toon=1.0,
        outline=1.0,
        saturation=1.25,
    ),
    "toon": Medium(
        words=("an animation of", "a cel shaded animation of", "an anime of"),
        toon=1.0,
        outline=0.5,
        ink=(0.35, 0.12, 0.35),
        saturation=1.2,
    ),
    "pencil": Medium(
        words=("a pencil sketch of", "a pencil drawing of"),
        drawing=1.0,
        outline=0.9,
        ink=(0.2, 0.2, 0.22),
        paper=(0.97, 0.96, 0.93),
        tone=0.45,
        hatching=1.0,
        grain=0.5,
    ),
    "charcoal": Medium(
        words=("a charcoal drawing of",),
        drawing=1.0,
        outline=0.8,
        ink=(0.06, 0.06, 0.06),
        paper=(0.72, 0.69, 0.64),
        tone=1.35,
        hatching=0.3,
        grain=2.0,
        wobble=1.0,
    ),
    "ink": Medium(
        words=("an ink drawing of", "a black ink drawing of"),
        drawing=0.95,
        outline=1.0,
        ink=(0.03, 0.03, 0.05),
        paper=(0.98, 0.97, 0.95),
        tone=0.9,
        toon=1.0,
    ),
    "woodcut": Medium(
        words=("a woodcut of", "an engraving of"),
        drawing=1.0,
        outline=1.0,
        ink=(0.05, 0.04, 0.04),
        paper=(0.95, 0.9, 0.78),
        tone=0.5,
        carved=1.0,
    ),
    "chalk": Medium(
        words=("a chalk drawing of", "a drawing on a blackboard of"),
        drawing=0.9,
        outline=1.0,
        ink=(0.94, 0.94, 0.9),
        paper=(0.13, 0.19, 0.17),
        tone=0.14,
        grain=1.0,
    ),
    "blueprint": Medium(
        words=("a blueprint of", "a technical drawing of"),
        drawing=1.0,
        outline=1.0,
        ink=(0.9, 0.95, 1.0),
        paper=(0.1, 0.28, 0.62),
        tone=0.12,
        lattice=1.0,
    ),
    "watercolor": Medium(
        words=("a watercolor painting of", "a watercolour of"),
        flat=0.35,
        outline=0.2,
        ink=(0.35, 0.3, 0.4),
        grain=0.5,
        wobble=1.0,
        wash=0.8,
        saturation=1.35,
    ),
    "oil": Medium(words=("an oil painting of", "a painting of"), wobble=1.6, grain=1.2, saturation=1.25, toon=0.3),
    "sepia": Medium(
        words=("an old photo of", "a sepia photo of"),
        grey=1.0,
        grain=0.6,
        ramp=ramp("3a2416 8a6440 d9b98c f7e6c6"),
        vignette=0.8,
    ),
    "grey": Medium(words=("a black and white photo of", "a black and white film of"), grey=1.0, vignette=0.5),
    "pixel": Medium(words=("pixel art of", "a video game of"), mosaic=1.0, toon=0.6, saturation=1.3),
    "halftone": Medium(
        words=("a halftone print of", "a newspaper picture of"),
        halftone=1.0,
        ink=(0.08, 0.07, 0.1),
        paper=(0.96, 0.93, 0.84),
    ),
    "hologram": Medium(
        words=("a hologram of", "a projection of"),
        scan=1.0,
        ramp=ramp("020812 06304e 12a6d8 c8faff"),
        outline=0.8,
        ink=(0.7, 1.0, 1.0),
    ),
    "thermal": Medium(
        words=("a thermal picture of", "a heat map of"),
        ramp=ramp("0b0530 5a12a0 d8285a ff9a1e fff6b0"),
        heat=1.0,
    ),
    "layers": Medium(
        words=("a papercut of", "paper layers of"),
        layers=6,
        ramp=ramp("fbeedd f7c9a8 ee8f83 c25584 74357f 2c1a4d"),
    ),
    "contours": Medium(
        words=("a topographic map of", "a contour map of"),
        layers=12,
        ramp=ramp("f6f0d8 d9e6b0 a9cf8c 7fb777"),
        contours=1.0,
        ink=(0.42, 0.24, 0.1),
    ),
    "silhouette": Medium(
        words=("a silhouette of", "a shadow theatre of"),
        silhouette=1.0,
        ink=(0.05, 0.03, 0.04),
        paper=(1.0, 0.72, 0.34),
        vignette=0.6,
    ),
    "negative": Medium(words=("a negative of", "an x ray of"), grey=1.0, negative=1.0, outline=0.8, vignette=0.3),
    "stained": Medium(
        words=("a stained glass window of",),
        toon=1.0,
        flat=0.5,
        outline=1.0,
        ink=(0.03, 0.03, 0.04),
        saturation=1.5,
        leaded=1.0,
    ),
}
