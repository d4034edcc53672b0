"""`python -m gateway` is `moshi-gateway`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
