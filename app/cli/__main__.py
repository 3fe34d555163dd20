"""`python -m app.cli`, as child processes call it."""

from app.cli import main

main()
