"""One script a library: it runs in that library's environment and prints JSON lines."""
