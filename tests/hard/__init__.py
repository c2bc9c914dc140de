"""A campaign against efface: kills, bad inputs, damaged files, hostile names; ``make hard``."""
