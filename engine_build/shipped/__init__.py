"""The trained model that comes with this package, its images, and the script that trained it."""
