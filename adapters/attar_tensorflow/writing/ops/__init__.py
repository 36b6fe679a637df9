"""The lowerings, by theme."""
