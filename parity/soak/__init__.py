"""No false alarms: random weights, prompts, pictures, sounds and thread counts, all of which must pass."""
