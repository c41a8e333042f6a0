"""What the core needs and no reader must open."""
