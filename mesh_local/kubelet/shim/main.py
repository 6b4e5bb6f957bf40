"""Run one container: `python -I -S .../main.py DIRECTORY`, with a pipe to the kubelet as descriptor 3.

The interpreter is isolated, so the packages' root is added by hand, last.
"""

import os
import sys


def main() -> None:
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.path.append(package)
    from mesh_local.kubelet.shim.supervisor import run

    sys.exit(run(sys.argv[1]))


if __name__ == "__main__":
    main()
