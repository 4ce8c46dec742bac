"""``python -m pqi``: the same as the command ``pqi``."""

from pqi.cli import main

if __name__ == "__main__":
    main()
