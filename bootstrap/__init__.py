"""How a swarm begins: seeds, and the demonstration."""
