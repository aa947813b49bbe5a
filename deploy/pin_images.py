"""`make pin-images`: write each image's digest into the manifests; `--check` refuses an image without.

A tag can be moved to another image; a digest cannot. The digests come from the registries, through
crane, skopeo or docker when a release is made, never written by hand: this repository carries the
tags, and a release's commit carries `name:tag@sha256:..`. Our own image has a digest only after it
is pushed: `--own registry.example.com/holdfast@sha256:..` writes that one.

Status 0: all images have a digest. 1: one has none, or has a tag that says no version.
2: a registry could not be asked; nothing was written.

examples:
  python deploy/pin_images.py                    # asks, and writes name:tag@sha256:..
  python deploy/pin_images.py --own registry.example.com/holdfast@sha256:..
  python deploy/pin_images.py --check            # what a release's pipeline runs last
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
# After this time a person has to ask the registry.
ASKING_LIMIT_S = 60
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# A name, a version and perhaps a digest; `latest`, `16` and no tag at all are refused.
PINNABLE = re.compile(
    r"[^\s:@]+(?::\d+)?(?:/[^\s:@]+)*:v?\d+\.\d+[\w.+-]*(?:@sha256:[0-9a-f]{64})?"
)
# The patterns of an image's name in a manifest: Dockerfile, Compose and Kubernetes, ECS.
PLACES = {
    "Dockerfile": re.compile(r"(?m)^(?:ARG BASE=|FROM )(?P<image>[^\s$]+)"),
    ".yaml": re.compile(r"(?m)^\s*(?:- )?image:\s*[\"']?(?P<image>[^\s\"'#]+)"),
    ".yml": re.compile(r"(?m)^\s*(?:- )?image:\s*[\"']?(?P<image>[^\s\"'#]+)"),
    ".json": re.compile(r"\"image\":\s*\"(?P<image>[^\"]+)\""),
}
# Kustomize writes our own image's name, tag and digest where `images:` says so.
KUSTOMIZED = re.compile(
    r"(?m)^(?P<head>  - name: holdfast\n(?:    newName: \S+\n)?)(?P<tag>    newTag: (?P<version>\S+)\n)"
    r"(?P<digest>    digest: (?P<sum>\S+)\n)?"
)
ASKING = {
    "crane": ("crane", "digest", "{image}"),
    "skopeo": ("skopeo", "inspect", "--format", "{{.Digest}}", "docker://{image}"),
    "docker": (
        *("docker", "buildx", "imagetools", "inspect", "{image}"),
        *("--format", "{{.Manifest.Digest}}"),
    ),
}


@dataclass(frozen=True, slots=True)
class Use:
    """One place in a manifest that names an image."""

    path: Path
    image: str

    @property
    def is_own(self) -> bool:
        return self.image.partition("@")[0].partition(":")[0].rpartition("/")[2] == "holdfast"

    @property
    def is_built_here(self) -> bool:
        """Compose builds our own image on the machine that runs it: no registry has a digest."""
        return self.image.startswith("holdfast:") and self.path.name.startswith("compose")

    @property
    def has_digest(self) -> bool:
        return DIGEST.fullmatch(self.image.partition("@")[2]) is not None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1: one has no digest")
    parser.add_argument("--own", metavar="IMAGE", help="our own image as it was pushed, @sha256:..")
    parser.add_argument("--deploy", type=Path, default=DEPLOY, help="the folder of the manifests")
    arguments = parser.parse_args()
    uses = list(uses_in(arguments.deploy))
    floating = [use for use in uses if not _is_pinnable(use)]
    for use in floating:
        print(f"{use.path}: {use.image} names no version", file=sys.stderr)
    if floating:
        return 1
    if not arguments.check:
        try:
            _pin(uses, arguments.own)
        except LookupError as error:
            print(error, file=sys.stderr)
            return 2
    return check(list(uses_in(arguments.deploy)))


def check(uses: list[Use]) -> int:
    """Name each image that has no digest."""
    lacking = [use for use in uses if not use.has_digest and not use.is_built_here]
    for use in lacking:
        print(f"{use.path}: {use.image} has no digest", file=sys.stderr)
    return 1 if lacking else 0


def uses_in(deploy: Path) -> Iterator[Use]:
    """Every image that a manifest below the folder names, our own ones too."""
    for path in sorted(deploy.rglob("*")):
        pattern = PLACES.get(path.name) or PLACES.get(path.suffix)
        if pattern is None or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        for match in pattern.finditer(text):
            # The bare name is what kustomize replaces.
            if match["image"] != "holdfast":
                yield Use(path, match["image"])
        for match in KUSTOMIZED.finditer(text):
            digest = f"@{match['sum']}" if match["sum"] else ""
            yield Use(path, f"holdfast:{match['version']}{digest}")


def _is_pinnable(use: Use) -> bool:
    return PINNABLE.fullmatch(use.image) is not None


def _pin(uses: list[Use], own: str | None) -> None:
    """Ask for all digests first, then write: without one of them no file is written."""
    foreign = {use.image.partition("@")[0] for use in uses if not use.is_own}
    digests = {image: _digest_of(image) for image in sorted(foreign)}
    if own is not None and not re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", own):
        raise LookupError("--own must look like registry.example.com/holdfast@sha256:..")
    for path in {use.path for use in uses}:
        text = path.read_text(encoding="utf-8")
        path.write_text(_pinned(text, path, digests, own), encoding="utf-8")


def _pinned(text: str, path: Path, digests: Mapping[str, str], own: str | None) -> str:
    def replace(match: re.Match[str]) -> str:
        use = Use(path, match["image"])
        name = use.image.partition("@")[0]
        if use.is_built_here:
            return match[0]
        if use.is_own and own is not None and use.image != "holdfast":
            # The version stays to be read beside the digest, which decides.
            version, (repository, _, digest) = name.rpartition(":")[2], own.partition("@")
            return match[0].replace(use.image, f"{repository}:{version}@{digest}")
        if name in digests:
            return match[0].replace(use.image, f"{name}@{digests[name]}")
        return match[0]

    pattern = PLACES.get(path.name) or PLACES[path.suffix]
    text = pattern.sub(replace, text)
    if own is None:
        return text
    repository, _, digest = own.partition("@")
    return KUSTOMIZED.sub(
        lambda match: (
            f"  - name: holdfast\n    newName: {repository}\n{match['tag']}    digest: {digest}\n"
        ),
        text,
    )


def _digest_of(image: str) -> str:
    """The digest that the registry gives for the tag now; of the index, for all platforms."""
    for program, words in ASKING.items():
        if shutil.which(program) is None:
            continue
        # Only a program of the list, and an image that PINNABLE has let pass.
        command = [word.replace("{image}", image) for word in words]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_LIMIT_S)
        except subprocess.TimeoutExpired:
            continue
        digest = asked.stdout.strip().strip("\"'")
        if asked.returncode == 0 and DIGEST.fullmatch(digest):
            return digest
    raise LookupError(f"{image}: no digest. Is one of {', '.join(ASKING)} here, and the registry?")


if __name__ == "__main__":
    sys.exit(main())
