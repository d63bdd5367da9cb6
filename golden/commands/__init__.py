"""The commands of `intsim`, one file each; what several share is in `common`."""
