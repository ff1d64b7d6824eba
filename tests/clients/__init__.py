"""Programs that others wrote for OpenAI's and Ollama's APIs, unchanged, against a swarm of real processes."""
