"""`meshctl`: manage the mesh."""

from meshctl.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
