"""Coding, sealing and compressing segments, and the policies of storage. Pure."""
