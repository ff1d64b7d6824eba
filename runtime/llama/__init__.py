"""llama.cpp as an engine beside torch: optional, tried at load, never the reference."""
