"""A package, so that the service of this folder ends with it: pytest ends what is of a package's scope
after the last test of a folder only where there is this file, elsewhere at the end of the session."""
