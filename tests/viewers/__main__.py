"""A derived series with its companions, out of an archive into viewers that are not ours.

    python -m tests.viewers docs/pictures

The head is simulated. Orthanc keeps what the node's writers made of it; OHIF shows it from there,
and DICOMscope what a query of the archive brings back. Each picture is checked before it is kept.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pydicom
from PIL import Image

from tests.integration.partners import DICOMWEB, Orthanc, free_port
from tests.integration.pictures import COLOURS, derived, store
from tests.viewers import dicomscope, ohif

KINDS = {"KO": "key_objects", "PR": "presentation", "SR": "report", "OT": "spread"}


def fetched(archive: Orthanc, folder: Path) -> dict[str, list[Path]]:
    """Return what the archive gives back, by kind."""
    found = defaultdict(list)
    for series in archive.series():
        for path in archive.download(series, folder):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            original = header.get("ImageType", [""])[0] == "ORIGINAL"
            found[KINDS.get(header.Modality, "source" if original else "classic")].append(path)
    return dict(found)


def main() -> int:
    """Look at everything, keep the pictures, print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.viewers", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("build/viewers"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as made:
        folder = Path(made)
        pictures = folder / "pictures"
        pictures.mkdir()
        archive = Orthanc(folder / "orthanc", free_port(), plugins=[DICOMWEB]).start()
        try:
            for paths in derived(folder).values():
                store(archive, paths)
            files = fetched(archive, folder / "fetched")
            packages = arguments.packages.resolve()
            told = {
                "OHIF": ohif.check(archive, files, packages, pictures),
                "OHIF, extended": ohif.check_documents(archive, files, packages, pictures),
            }
        finally:
            archive.stop()
        told["DICOMscope"] = dicomscope.check(files, folder / "dicomscope", pictures)
        for path in sorted(pictures.iterdir()):
            with Image.open(path) as picture:
                small = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS)
                small.save(arguments.out / path.name, optimize=True)
    for viewer, lines in told.items():
        for what, line in lines.items():
            print(f"{viewer:16}{what}: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
