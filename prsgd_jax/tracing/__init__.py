"""How functions of callers and of one replica are traced, checked and keyed."""
