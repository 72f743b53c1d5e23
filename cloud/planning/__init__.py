"""What goes down to each device and what may come up."""
