"""Send the sample to a server and print what it saw. The standard library is enough: the API is JSON over HTTP."""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

SAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sample.json")
INK = " .:-=+*#@"  # two of the 17 grey values a character


def fetch_json(url: str, body: bytes | None = None) -> Any:
    """GET, or POST where there is a body."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def draw(image: list[list[float]]) -> str:
    """Two characters a pixel: a terminal's cells are twice as high as wide."""
    return "\n".join("  " + "".join(2 * INK[int(pixel) // 2] for pixel in row).rstrip() for row in image)


def find_live_version(status: dict[str, Any]) -> str:
    """The version that answers requests that name none: the highest that is AVAILABLE."""
    versions = [int(v["version"]) for v in status["model_version_status"] if v["state"] == "AVAILABLE"]
    return str(max(versions)) if versions else "none"


def describe_error(error: urllib.error.URLError, url: str) -> str:
    """What the server said, where it said something; else what to try."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}: {error.read().decode(errors='replace')}"
    return f"no answer from {url}: {error.reason}; is `dropserve serve` running there?"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8501", help="the server's REST address")
    parser.add_argument("--sample", default=SAMPLE, help='a request body: {"instances": [8×8 pixels 0..16, …]}')
    options = parser.parse_args()

    model = f"{options.url}/v1/models/digits"
    with open(options.sample, "rb") as file:
        body = file.read()
    try:
        predictions = fetch_json(f"{model}:predict", body)["predictions"]
        status = fetch_json(model)  # a prediction does not say which version made it
    except urllib.error.URLError as error:
        print(describe_error(error, options.url), file=sys.stderr)
        return 1

    for image, prediction in zip(json.loads(body)["instances"], predictions, strict=True):
        digit = prediction["digit"]
        print(f"{draw(image)}\n  → {digit}  ({prediction['probabilities'][digit]:.1%} sure)\n")
    print(f"version {find_live_version(status)} is live")
    return 0


if __name__ == "__main__":
    sys.exit(main())
