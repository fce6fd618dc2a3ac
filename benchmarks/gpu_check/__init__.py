"""One run of everything that needs a GPU; see ``__main__``."""
