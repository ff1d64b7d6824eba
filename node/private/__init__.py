"""Private models: their secrets, who may read them, and what a caller sees of them."""
