"""Finished results in other programs' formats: a module a format, chosen by name in ``formats``."""
