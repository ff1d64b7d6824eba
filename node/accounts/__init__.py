"""Accounts of this node: who may call, by what credential, and how often. No server: each node has its own, tokens carry them to others."""
