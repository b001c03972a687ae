"""Where did it break: the first stage whose error jumps."""
