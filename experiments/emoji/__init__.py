"""Text to image on the pictures of an emoji font."""
