"""Sorts the stamps of Tux Paint into folders of classes, to try fine-tuning on real photographs.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python examples/sort_stamps.py stamps/usr/share/tuxpaint/stamps data/stamps

The package of Debian and Ubuntu holds photographs of animals, food, plants, vehicles and more, cut
out by its volunteers, and some drawings (GPL 2). Two fifths of each class, chosen by a hash of the
name, are the test.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from PIL import Image

# The folders of each class.
CLASSES = {
    "bird": ["animals/birds"],
    "fish": ["animals/fish"],
    "insect": ["animals/insects"],
    "mammal": ["animals/mammals", "animals/marsupials"],
    "flower": ["plants/flowers"],
    "fruit": ["food/fruit", "food/nuts"],
    "vegetable": ["food/vegetables"],
    "road sign": ["town/roadsigns"],
    "tool": ["household/tools"],
    "musical instrument": ["hobbies/music"],
    "vehicle": ["vehicles", "military/vehicles"],
    "ball": ["sports"],
    "planet": ["space/planets", "space/moon"],
}


def sort(stamps: Path, data: Path) -> None:
    """Writes the pictures on white, as data/train/CLASS/NAME.png and data/test/CLASS/NAME.png."""
    for label, folders in CLASSES.items():
        for folder in folders:
            paths = sorted((stamps / folder).rglob("*.png"))
            for path in paths:
                if "cartoon" in path.parts or "mirror" in path.stem or "flip" in path.stem:
                    continue
                number = hashlib.sha256(path.stem.encode()).digest()[0]
                split = "test" if number < 0.4 * 256 else "train"
                stamp = Image.open(path).convert("RGBA")
                picture = Image.new("RGB", stamp.size, "white")
                picture.paste(stamp, mask=stamp.getchannel("A"))
                place = data / split / label / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                picture.save(place)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stamps", type=Path, help="the folder stamps of the package")
    parser.add_argument("data", type=Path, help="the folder to write train and test to")
    args = parser.parse_args()
    if not (args.stamps / "animals").is_dir():
        parser.error(f"{args.stamps} is no folder of stamps: it has no animals")
    sort(args.stamps, args.data)
    for split in ("train", "test"):
        counts = {p.name: len(list(p.iterdir())) for p in sorted((args.data / split).iterdir())}
        print(split, sum(counts.values()), counts)


if __name__ == "__main__":
    main()
