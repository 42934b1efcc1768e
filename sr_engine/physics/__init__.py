"""What the scanner does to an image, and what it takes to undo it."""
