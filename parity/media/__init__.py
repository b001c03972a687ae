"""What goes with a prompt besides text: made here, or read from files, and turned into a model's inputs."""
