"""What a family is written with: configs, stages, weight maps, checkpoint reading, exported signatures."""
