"""Write sample.json: the body of a REST request with two held-out images, one row of pixels a line for the eye.

The file is committed; run this again only when the held-out part changes.
"""

import os

import numpy as np
from digits import load_split

SAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sample.json")
DIGITS = (4, 2)  # the first held-out image of each


def main() -> None:
    """Overwrite sample.json. TensorFlow Serving takes whole numbers where the signature says float."""
    _, held_out = load_split()
    images = []
    for digit in DIGITS:
        image = held_out.images[np.flatnonzero(held_out.labels == digit)[0]]
        rows = ["[" + ", ".join(f"{int(pixel):2}" for pixel in row) + "]" for row in image]
        images.append("  [" + ",\n   ".join(rows) + "]")
    with open(SAMPLE, "w", encoding="ascii") as file:
        file.write('{"instances": [\n' + ",\n".join(images) + "\n]}\n")
    print(f"wrote {SAMPLE}")


if __name__ == "__main__":
    main()
