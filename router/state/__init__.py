"""What one router knows of its fleet: events keep it, and the store makes it survive a restart."""
