"""`python -m quart_tenants` is the program `quart-tenants`."""

from quart_tenants.app.cli import main

if __name__ == "__main__":
    main()
