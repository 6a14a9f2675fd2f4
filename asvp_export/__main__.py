"""`python -m asvp_export`: the command line."""

from asvp_export.cli import main

main()
