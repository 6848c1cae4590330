"""One file per task; a recipe imports the one that it names."""
