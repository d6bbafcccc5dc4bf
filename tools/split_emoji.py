"""Splits the training emoji once more, to choose hyperparameters without the two tests.

    python tools/split_emoji.py --out /tmp/emoji
    python -m clip_jax.main --config configs/quickstart.py --workdir runs/choice \\
        --config.data.train=/tmp/emoji/train.tar \\
        --config.evaluate.sets.unseen_drawing.data=/tmp/emoji/unseen_drawing.tar \\
        --config.evaluate.sets.unseen_drawing.labels=/tmp/emoji/labels.json \\
        --config.evaluate.sets.unseen_concept.data=/tmp/emoji/unseen_concept.tar \\
        --config.evaluate.sets.unseen_concept.labels=/tmp/emoji/labels.json

One family of drawings and about 8.5 % of the concepts with their variants, chosen by a hash, are
held out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

EMOJI = Path(__file__).resolve().parent.parent / "clip_jax" / "data" / "emoji"
FAMILY = "fxemoji"
HELD_OUT = 85  # of 1,000

Sample = dict[str, tuple[tarfile.TarInfo, bytes]]  # by the part of the name after the key


def samples() -> Iterator[Sample]:
    """The samples of the training tars."""
    for path in sorted(EMOJI.glob("train-*.tar")):
        by_key: defaultdict[str, Sample] = defaultdict(dict)
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    key, _, suffix = member.name.partition(".")
                    by_key[key][suffix] = member, file.read()
        yield from by_key.values()


def held_out(variants_of: str) -> bool:
    """Whether a concept is held out; the same for all its variants."""
    return int(hashlib.md5(variants_of.encode()).hexdigest(), 16) % 1000 < HELD_OUT


def main() -> None:
    """Writes three tars and the label names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    names: dict[str, set[str]] = {"unseen_drawing": set(), "unseen_concept": set()}
    count = dict.fromkeys(("train", *names), 0)
    with contextlib.ExitStack() as open_tars:
        tars = {
            split: open_tars.enter_context(tarfile.open(out / f"{split}.tar", "w"))
            for split in count
        }
        for sample in samples():
            text = json.loads(sample["json"][1])
            names["unseen_drawing"].add(text["name"])
            if held_out(text["variants_of"]):
                names["unseen_concept"].add(text["name"])
                parts = {"unseen_concept": set(sample)}
            else:
                drawn = f"{FAMILY}.webp"
                parts = {"train": set(sample) - {drawn}, "unseen_drawing": {"json", drawn}}
            for split, suffixes in parts.items():
                chosen = [sample[suffix] for suffix in sorted(sample) if suffix in suffixes]
                if len(chosen) > 1:  # more than the JSON file
                    count[split] += len(chosen) - 1
                    for member, content in chosen:
                        tars[split].addfile(member, io.BytesIO(content))
    labels = {test: sorted(keys) for test, keys in names.items()}
    (out / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1))
    print(", ".join(f"{split} {n:,} pictures" for split, n in count.items()))


if __name__ == "__main__":
    main()
