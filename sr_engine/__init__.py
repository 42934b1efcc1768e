"""The engine: images in, images out; knows no network and no database."""

__version__ = "0.1.0"
