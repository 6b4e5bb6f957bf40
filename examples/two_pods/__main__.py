"""Show a mesh of a few pods on this machine.

Exit code 0 if all it shows is as expected, 1 if not, 2 if it cannot run here.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

from examples.two_pods.demo import Demo
from examples.two_pods.netns import SceneError, remove_leftovers


def main() -> int:
    """Run the demo, or clean up after one that was killed."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.two_pods", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--cleanup", action="store_true", help="only remove what runs that were killed have left behind"
    )
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        if args.cleanup:
            if os.geteuid() != 0:
                raise SceneError("this needs root, to remove network namespaces")
            for name in remove_leftovers():
                print(f"removed {name}")
            return 0
        return 0 if Demo().run() else 1
    except SceneError as exc:
        print(f"two_pods: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
