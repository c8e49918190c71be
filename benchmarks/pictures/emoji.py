"""Real pictures for an image folder: emoji of four vendors, by category; one vendor is held out.

    python -m benchmarks.pictures.emoji FOLDER

FOLDER/train/<category>/<vendor>-<code points>.png and FOLDER/val/…: 64 × 64 pixels, with transparency. They come from
the npm packages emoji-datasource-<vendor> (about 400 MB to download, 44 MB are kept); nothing of them is part of
kdtool. What is learned is what one vendor's pictures have in common with another's.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VERSION = "16.0.0"
VENDORS = {"apple": "train", "google": "train", "facebook": "train", "twitter": "val"}
LEFT_OUT = "Component"  # hair and skin, on their own


def folder_of(category: str) -> str:
    """`Smileys & Emotion` as a folder's name: smileys-emotion."""
    return re.sub(r"[^a-z]+", "-", category.lower()).strip("-")


def unpack(archive: Path, vendor: str, into: Path) -> int:
    """Writes a vendor's pictures into the folders of their categories; how many."""
    with tarfile.open(archive) as package:
        described = package.extractfile("package/emoji.json")
        assert described is not None
        listed: list[dict[str, Any]] = json.load(described)
        shown = {one["image"]: one for one in listed if one["category"] != LEFT_OUT and one[f"has_img_{vendor}"]}
        written = 0
        for member in package:
            place, _, name = member.name.rpartition("/")
            if place == f"package/img/{vendor}/64" and name in shown and (picture := package.extractfile(member)):
                folder = into / folder_of(shown[name]["category"])
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{vendor}-{name}").write_bytes(picture.read())
                written += 1
    return written


def fetch(folder: Path, vendor: str) -> int:
    """Downloads a vendor's package and unpacks it. Raises CalledProcessError where npm does not reach it."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = f"emoji-datasource-{vendor}@{VERSION}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        return unpack(archive, vendor, folder / VENDORS[vendor])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if shutil.which("npm") is None:
        sys.exit("npm is not installed. On Debian or Ubuntu: apt-get install npm")
    folder.mkdir(parents=True, exist_ok=True)
    for vendor, split in VENDORS.items():
        if not list((folder / split).glob(f"*/{vendor}-*.png")):
            print(f"{vendor}: {fetch(folder, vendor):,} pictures in {folder / split}", flush=True)


if __name__ == "__main__":
    main()
