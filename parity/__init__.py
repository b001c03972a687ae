"""The harness: every rung of the porting ladder on the same inputs, the loss at each hop, one honest verdict."""
