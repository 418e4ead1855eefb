"""`python -m danlu`, as torchrun starts it."""

from danlu.cli import main

if __name__ == "__main__":
    main()
