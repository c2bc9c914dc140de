"""Networks that say what a picture shows, one file each."""
