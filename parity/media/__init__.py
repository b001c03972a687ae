"""Pictures for prompts: drawn by the project, or read from a file."""
