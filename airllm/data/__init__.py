"""Text: where it comes from, how devices share it, and how complex it is."""
