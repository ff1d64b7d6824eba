"""Telling a caller's own server what ended: signed, tried again, and never sent into this machine's networks."""
