"""`python -m distbranch`, and what torchrun starts."""

from distbranch.cli import main

if __name__ == "__main__":
    main()
