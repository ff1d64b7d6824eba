"""The HTTP surface of a node: one application over `node.gateway.Gateway`."""
