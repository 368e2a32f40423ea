"""Wordings: how a caption writes the name of a class; small tables replace names that are not good English."""

from collections.abc import Callable, Mapping

from flora_hpc.data.datasets._countries import COUNTRIES

Wording = Callable[[str], str]


def spaced(name: str) -> str:
    """'apple_pie' becomes 'apple pie'."""
    return name.replace("_", " ").strip()


def table(words: Mapping[str, str]) -> Wording:
    """A wording by table; a name that is not in `words` only loses its underscores."""
    return lambda name: words.get(name, spaced(name))


def flower(name: str) -> str:
    """'pink-yellow dahlia?' loses the question mark of its authors, which torchvision keeps."""
    return spaced(name).rstrip("? ")


def scene(name: str) -> str:
    """'apartment_building/outdoor' becomes 'outdoor apartment building', but 'elevator/door' becomes 'elevator door'."""
    what, _, which = spaced(name).partition("/")
    if not which:
        return what
    return f"{what} {which}" if which in _PARTS_OF_SCENES else f"{which} {what}"


_PARTS_OF_SCENES = ("door", "platform", "shop", "backseat", "frontseat")

country = table(COUNTRIES)

clothing = table(
    {
        "T-shirt/top": "t-shirt or top",
        "Trouser": "pair of trousers",
        "Pullover": "pullover",
        "Dress": "dress",
        "Coat": "coat",
        "Sandal": "sandal",
        "Shirt": "shirt",
        "Sneaker": "sneaker",
        "Bag": "bag",
        "Ankle boot": "ankle boot",
    }
)

land = table(
    {
        "AnnualCrop": "annual crop land",
        "Forest": "forest",
        "HerbaceousVegetation": "herbaceous vegetation",
        "Highway": "highway or road",
        "Industrial": "industrial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings",
        "River": "river",
        "SeaLake": "sea or lake",
    }
)

face = table(
    {
        "Angry": "angry",
        "Disgust": "disgusted",
        "Fear": "fearful",
        "Happy": "happy",
        "Sad": "sad",
        "Surprise": "surprised",
        "Neutral": "neutral",
    }
)

thing = table(
    {
        "Faces": "off-center face",
        "Faces_easy": "centered face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
        "brontosaurus": "brontosaurus dinosaur",
        "car_side": "side of a car",
        "water_lilly": "water lily",
        "yin_yang": "yin and yang symbol",
    }
)
