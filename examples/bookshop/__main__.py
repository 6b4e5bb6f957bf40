"""Run the bookshop demo on a local cluster of its own. Root is needed.

Exit code 0 if everything measured is as expected, 1 if not, 2 if it cannot run here.
"""

import argparse
import os
import signal
import sys
from types import FrameType

from examples.bookshop.demo import Demo
from examples.bookshop.shop import Shop
from examples.two_pods.netns import SceneError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.bookshop", description=__doc__)
    parser.add_argument("--cluster", default="bookshop", help="name of the local cluster (default bookshop)")
    keep = os.environ.get("KEEP", "") not in ("", "0")
    parser.add_argument("--keep", action="store_true", default=keep, help="leave it running (also KEEP=1)")
    args = parser.parse_args()

    def ended(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # so that what was started is taken down

    signal.signal(signal.SIGTERM, ended)
    shop = Shop(args.cluster)
    demo = Demo(shop)
    up = False
    try:
        shop.title("A cluster on this machine")
        up = True
        shop.show("meshctl", "local", "up", "--name", args.cluster)
        demo.run()
        good = demo.summary()
    except (SceneError, TimeoutError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if up and args.keep:
            print(_KEPT.format(kubeconfig=shop.kubeconfig, cluster=args.cluster))
        elif up:
            shop.title("Everything is taken down")
            shop.show("meshctl", "local", "down", "--purge", "--name", args.cluster)
    return 0 if good else 1


_KEPT = """
The cluster is left running. Try:
  export PATH=$PWD/.venv/bin:$PATH KUBECONFIG={kubeconfig}
  meshctl stat deploy -n bookshop --watch
  meshctl top -n bookshop
  meshctl policy get -n bookshop
  meshctl policy explain reviews -n bookshop
  meshctl policy set reviews -n bookshop --split v1=50,v2=50
  meshctl proxy-config POD routes -n bookshop
Remove it with:
  meshctl local down --purge --name {cluster}"""

if __name__ == "__main__":
    sys.exit(main())
