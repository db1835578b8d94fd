"""``python -m deploy.packages deb``: build packages into the folder ``dist``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy.packages import debian, keys, manual, openwrt, pypi
from deploy.packages.tree import ROOT


def pages(target: Path) -> list[Path]:
    """Write the manual pages."""
    target.mkdir(parents=True, exist_ok=True)
    written = [target / name for name in manual.PAGES]
    for path in written:
        path.write_text(manual.page(path.name), encoding="utf-8")
    return written


KINDS: Final[dict[str, Callable[[Path], list[Path]]]] = {
    "deb": lambda target: [debian.build(target)],
    "ipk": openwrt.build,
    "keys": lambda target: [keys.write(target)],
    "man": pages,
    "dist": pypi.build,
    "pot": lambda _target: [openwrt.write_translations()],
}


def main() -> int:
    """Build what is asked for; say where it is."""
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in KINDS:
        sys.stderr.write(f"usage: python -m deploy.packages {'|'.join(KINDS)} [FOLDER]\n")
        return 2
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else ROOT / "dist"
    for path in KINDS[sys.argv[1]](target):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
