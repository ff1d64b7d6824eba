"""The product's version, in one place: the package, `--version` and `status` read it here."""

VERSION = "0.1.0"
